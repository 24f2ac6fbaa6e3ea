// The child process of the test kit: runs one launcher once, under a sanitizer or counting.      (its parent: hetkern.testing)
//
// driver --parameters prints the launcher's. driver FOLDER runs it: FOLDER/arguments has a line for each parameter:
//   tensor NAME FILE BYTES ALIGN     its bytes lie in FOLDER/FILE and are written back; ALIGN: its address modulo 256
//   same I                           the pointer of parameter I
//   value HEX                        eight bytes
// FOLDER/error gets what was thrown, FOLDER/traffic what was counted.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "sanitizers.h"
#include "traffic.h"

extern "C" const char* hetkern_parameters();
extern "C" int hetkern_call(const unsigned char* slots, char* error, size_t error_size);

namespace {

struct Buffer {
  std::string file;
  char* data;
  size_t bytes;
};

// At the wanted address modulo 256, with nothing behind its last byte.
char* allocate(size_t bytes, size_t align) {
  void* p = nullptr;
  if (posix_memalign(&p, 256, align + bytes + (align + bytes == 0))) std::abort();
#ifdef HETKERN_EMULATION_ADDRESS
  ASAN_POISON_MEMORY_REGION(p, align);
#endif
  return static_cast<char*>(p) + align;
}

}  // namespace

int main(int, char** arguments) {
  if (std::strcmp(arguments[1], "--parameters") == 0) return std::fputs(hetkern_parameters(), stdout) < 0;
  const std::string folder = std::string(arguments[1]) + "/";
  std::ifstream lines(folder + "arguments");
  std::vector<uint64_t> slots;
  std::vector<Buffer> buffers;
  for (std::string line, word; std::getline(lines, line);) {
    std::istringstream in(line);
    in >> word;
    if (word == "tensor") {
      std::string name, file;
      size_t bytes, align;
      in >> name >> file >> bytes >> align;
      // TSan remembers four accesses of eight bytes: this process's own, a byte at a time, would push out what kernels do.
      const hetkern::emulation::sanitize::Quiet quiet;
      char* const data = allocate(bytes, align);
      std::ifstream(folder + file, std::ios::binary).read(data, static_cast<std::streamsize>(bytes));
      buffers.push_back({file, data, bytes});
      hetkern::emulation::traffic::watch(name.c_str(), data, bytes);
      slots.push_back(reinterpret_cast<uint64_t>(data));
    } else if (word == "same") {
      size_t i;
      in >> i;
      slots.push_back(slots[i]);
    } else {
      uint64_t value;
      in >> std::hex >> value;
      slots.push_back(value);
    }
  }
  char error[4096];
  const int kind = hetkern_call(reinterpret_cast<const unsigned char*>(slots.data()), error, sizeof error);
  if (kind) std::ofstream(folder + "error") << kind << ' ' << error;
  for (const Buffer& b : buffers)
    std::ofstream(folder + b.file, std::ios::binary).write(b.data, static_cast<std::streamsize>(b.bytes));
  hetkern::emulation::traffic::report((folder + "traffic").c_str());
  return 0;
}
