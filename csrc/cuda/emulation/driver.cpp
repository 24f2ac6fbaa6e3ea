// The child process of the test kit: runs one launcher once, under a sanitizer or counting.      (its parent: hetkern.testing)
//
// driver LAUNCHER --parameters prints the launcher's. driver LAUNCHER FOLDER runs it: FOLDER/arguments has a line for each parameter:
//   tensor NAME FILE BYTES ALIGN HOLES OFFSET   the bytes in FOLDER/FILE, which are written back, at an address that is ALIGN modulo
//                                               256; HOLES: a file with a 0 for each byte that is no element, or -; the pointer is
//                                               OFFSET into them
//   part I OFFSET                               that far into the bytes of parameter I
//   value HEX                                   eight bytes
// FOLDER/error gets what was thrown, FOLDER/traffic what was counted, FOLDER/places each tensor's address, FOLDER/fault what
// AddressSanitizer was called for: address, bytes, whether a store, instruction, kernel, block, thread.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "sanitizers.h"
#include "threads.h"
#include "traffic.h"

extern "C" const char* hetkern_parameters(const char* launcher);
extern "C" int hetkern_call(const char* launcher, const unsigned char* slots, unsigned fill, char* error,
                            size_t error_size);
extern "C" unsigned long hetkern_undefined(char* place, size_t size);

namespace {

std::string folder, launcher;

struct Buffer {
  std::string file;
  char* data;
  size_t bytes;
  std::string used;  // a 0 for each byte that is none of its elements; empty: all are

  void poison([[maybe_unused]] bool yes) const {
#ifdef HETKERN_EMULATION_ADDRESS
    for (size_t i = 0, j; i < used.size(); i = j) {
      for (j = i; j < used.size() && used[j] == used[i];) ++j;
      if (used[i]) continue;
      if (yes)
        __asan_poison_memory_region(data + i, j - i);
      else
        __asan_unpoison_memory_region(data + i, j - i);
    }
#endif
  }
  void read() const { std::ifstream(folder + file, std::ios::binary).read(data, static_cast<std::streamsize>(bytes)); }
};

#ifdef HETKERN_EMULATION_ADDRESS
// Tensors lie far apart, with nothing between: an index that misses one of them meets no other, however wrong it is.
char* allocate(size_t bytes, size_t align) {
  constexpr size_t apart = size_t{1} << 37, page = 4096;
  const size_t pages = (align + bytes + 2 * page - 1) / page * page;
  void* const p = mmap(nullptr, apart + pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) std::abort();
  char* const first = static_cast<char*>(p) + apart / 2;
  mprotect(first, pages, PROT_READ | PROT_WRITE);
  __asan_poison_memory_region(first, pages);
  char* const data = first + 256 + align;
  __asan_unpoison_memory_region(data, bytes);
  return data;
}
#else
char* allocate(size_t bytes, size_t align) {
  void* p = nullptr;
  if (posix_memalign(&p, 256, align + bytes + (align + bytes == 0))) std::abort();
  return static_cast<char*>(p) + align;
}
#endif

std::string bytes_of(const std::string& file) {
  std::ifstream in(folder + file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

int call_once(const std::vector<uint64_t>& slots, const std::vector<Buffer>& buffers, unsigned fill,
              char (&error)[4096]) {
  for (const Buffer& b : buffers) b.poison(true);
  const int kind =
      hetkern_call(launcher.c_str(), reinterpret_cast<const unsigned char*>(slots.data()), fill, error, sizeof error);
  for (const Buffer& b : buffers) b.poison(false);
  return kind;
}

// This process as it was before the first call, to run others: what the file keeps between launches is new in each. One that goes
// wrong says nothing.
class Again {
 public:
  Again() {
    if (pipe(asked_) || pipe(told_)) std::abort();
    if ((spare_ = fork()) != 0) {
      close(asked_[0]), close(told_[1]);
      return;
    }
    close(asked_[1]), close(told_[0]);
    const int nowhere = open("/dev/null", O_WRONLY);
    dup2(nowhere, 1), dup2(nowhere, 2);
  }
  bool is_spare() const { return spare_ == 0; }
  // In the spare process: each run in a child of its own, which leaves its results in a file.
  template <class Run>
  [[noreturn]] void serve(Run run) {
    for (unsigned char fill; read(asked_[0], &fill, 1) == 1;) {
      const pid_t child = fork();
      if (child == 0) _exit(run(fill));
      int status = 1;
      waitpid(child, &status, 0);
      const unsigned char good = status == 0;
      if (write(told_[1], &good, 1) != 1) break;
    }
    _exit(0);
  }
  bool ran(unsigned fill) const {  // to its end
    const auto asked = static_cast<unsigned char>(fill);
    unsigned char good = 0;
    return write(asked_[1], &asked, 1) == 1 && read(told_[0], &good, 1) == 1 && good;
  }

 private:
  int asked_[2], told_[2];
  pid_t spare_;
};

const char* result_of(const Buffer& b, const std::string& result) {  // the first byte that is another one; null: none
  for (size_t i = 0; i < b.bytes; ++i)
    if (i >= result.size() || b.data[i] != result[i]) return b.data + i;
  return nullptr;
}

// A value that a shuffle took of a lane that takes no part may be anything, and so may shared memory that nobody has written. Is it
// used? Then the results depend on it.
int call(const std::vector<uint64_t>& slots, std::vector<Buffer>& buffers, char (&error)[4096]) {
#ifdef HETKERN_EMULATION_TRAFFIC
  return call_once(slots, buffers, 0, error);
#endif
  Again again;
  if (again.is_spare()) {
    const std::string here = folder;
    folder = "/dev/null/";
    again.serve([&](unsigned fill) {
      if (call_once(slots, buffers, fill, error)) return 1;
      for (const Buffer& b : buffers)
        if (!std::ofstream(here + b.file + ".again", std::ios::binary)
                 .write(b.data, static_cast<std::streamsize>(b.bytes)))
          return 1;
      return 0;
    });
  }
  const int kind = call_once(slots, buffers, 0, error);
  char place[512];
  const bool shuffled = hetkern_undefined(place, sizeof place), shared = hetkern::emulation::undefined_values.shared;
#ifdef HETKERN_EMULATION_ADDRESS
  constexpr bool look = true;
#else
  constexpr bool look = false;
#endif
  if (kind || !(shuffled || (shared && look))) return kind;
  const hetkern::emulation::sanitize::Quiet quiet;
  const char* other = nullptr;
  const auto same_again = [&](unsigned fill) {
    if (!again.ran(fill)) return false;
    const char* first = nullptr;
    for (const Buffer& b : buffers)
      if (!first) first = result_of(b, bytes_of(b.file + ".again"));
    if (!other) other = first;
    return !first;
  };
  for (unsigned fill = 1; fill < 4; ++fill) {
    if (same_again(fill)) continue;
    const char* const found = other;
    if (!same_again(0)) return 0;  // they are never the same: of a clock, perhaps
    if (shuffled)
      std::snprintf(error, sizeof error,
                    "the results depend on a value that a shuffle takes from a lane outside its mask, or from one that "
                    "has returned, where CUDA gives none [%s]",
                    place);
    else if (found)
      std::snprintf(error, sizeof error,
                    "the results depend on shared memory that nobody has written, the first of them at address %p [%s]",
                    static_cast<const void*>(found), hetkern::emulation::undefined_values.kernel);
    else
      std::snprintf(error, sizeof error, "whether it ends depends on shared memory that nobody has written [%s]",
                    hetkern::emulation::undefined_values.kernel);
    return 3;
  }
  return 0;
}

}  // namespace

#ifdef HETKERN_EMULATION_ADDRESS
extern "C" {
void* __asan_get_report_address();
void* __asan_get_report_pc();
int __asan_get_report_access_type();
size_t __asan_get_report_access_size();
extern char __ehdr_start[] __attribute__((visibility("hidden")));

__attribute__((visibility("default"))) void __asan_on_error() {
  const auto* const thread = hetkern::emulation::current;
  const uint3 b = thread ? thread->block->index : uint3{0, 0, 0};
  char text[512];
  const int n = std::snprintf(
      text, sizeof text, "%zx %zu %d %zx\n%s\n%u %u %u %u\n", reinterpret_cast<size_t>(__asan_get_report_address()),
      __asan_get_report_access_size(), __asan_get_report_access_type(),
      static_cast<size_t>(static_cast<char*>(__asan_get_report_pc()) - 1 -
                          __ehdr_start),  // within the call that reports
      thread ? hetkern::emulation::grid->kernel : "", b.x, b.y, b.z, thread ? thread->linear : 0);
  const int file = open((folder + "fault").c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
  if (file >= 0 && write(file, text, static_cast<size_t>(n)) == n) close(file);
}
}
#endif

int main(int, char** arguments) {
  launcher = arguments[1];
  if (std::strcmp(arguments[2], "--parameters") == 0) {
    const char* const parameters = hetkern_parameters(launcher.c_str());
    return std::fputs(parameters ? parameters : "", stdout) < 0;
  }
  folder = std::string(arguments[2]) + "/";
  hetkern::emulation::traffic::packs((folder + "packs").c_str());
  std::ifstream lines(folder + "arguments");
  std::ofstream places(folder + "places");
  std::vector<uint64_t> slots, bases;
  std::vector<Buffer> buffers;
  for (std::string line, word; std::getline(lines, line);) {
    std::istringstream in(line);
    in >> word;
    if (word == "tensor") {
      std::string name, file, holes;
      size_t bytes, align, offset;
      in >> name >> file >> bytes >> align >> holes >> offset;
      // TSan remembers four accesses of eight bytes: this process's own, a byte at a time, would push out what kernels do.
      const hetkern::emulation::sanitize::Quiet quiet;
      buffers.push_back({file, allocate(bytes, align), bytes, holes == "-" ? "" : bytes_of(holes)});
      buffers.back().read();
      hetkern::emulation::traffic::watch(name.c_str(), buffers.back().data, bytes);
      bases.resize(slots.size() + 1);
      bases.back() = reinterpret_cast<uint64_t>(buffers.back().data);
      slots.push_back(bases.back() + offset);
    } else if (word == "part") {
      size_t i, offset;
      in >> i >> offset;
      slots.push_back(bases[i] + offset);
    } else {
      uint64_t value;
      in >> std::hex >> value;
      slots.push_back(value);
    }
    places << std::hex << slots.back() << '\n';
  }
  places.close();
  char error[4096];
  const int kind = call(slots, buffers, error);
  if (kind) std::ofstream(folder + "error") << kind << ' ' << error;
  for (const Buffer& b : buffers)
    std::ofstream(folder + b.file, std::ios::binary).write(b.data, static_cast<std::streamsize>(b.bytes));
  hetkern::emulation::traffic::report((folder + "traffic").c_str());
  return 0;
}
