// Counts the loads and stores of kernels built with g++ -fsanitize=thread, which puts a call before each: here they are
// answered, in libtsan's place.                                                                            (words: traffic.h)
//
// The k-th time that the lanes of a warp pass one instruction is one request. In global memory it costs 32-byte sectors, in
// shared memory passes over 32 banks of 4 bytes, half or a quarter of a warp at a time where lanes take 8 or 16 bytes.
// Each block of a cluster has banks of its own: lanes that read several peers' memories do not meet in them.
// Not seen: what nvcc keeps in registers and g++ does not, or the other way round; hits in L1 and L2; a request that lanes
// reach by different ways; the network between a cluster's multiprocessors.
#include "traffic.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

// Of this library or program, from the linker.
extern "C" {
extern char __ehdr_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
}

namespace hetkern::emulation::traffic {
namespace {

struct Range {
  const char *low, *high;
  bool has(const void* p) const { return p >= low && p < high; }
};

struct Tensor {
  std::string name;
  Range range;
};

enum class Memory : char { global, shared, peer };

struct Launched {
  Grid grid;
  const void* kernel;  // its first instruction, which a template's instances do not share
};

struct Access {
  uintptr_t address;
  unsigned bytes;
  unsigned rank;  // of the block whose shared memory it is
  unsigned lane;
};

struct Request {
  const void* instruction;
  unsigned launch;
  bool store;
  Memory memory;
  std::vector<Access> lanes;
};

struct Key {  // one request
  const void* instruction;
  uint64_t warp;  // of which block
  unsigned time;  // how often that warp's lane has passed
  bool operator==(const Key& o) const { return instruction == o.instruction && warp == o.warp && time == o.time; }
};
struct Hash {
  size_t operator()(const Key& k) const {
    return (reinterpret_cast<size_t>(k.instruction) * 31 + k.warp) * 0x9e3779b97f4a7c15u + k.time;
  }
};

std::vector<Tensor> tensors;
std::vector<Launched> launches;
std::vector<Request> requests;
std::unordered_map<Key, size_t, Hash> open_requests;  // of the launch at hand
std::unordered_map<Key, unsigned, Hash> passes;       // likewise: by thread instead of warp
Range parameters, host_stack;
bool busy = false;  // the containers are instrumented, too, where the linker took the kernels' copies

struct Busy {
  Busy() { busy = true; }
  ~Busy() { busy = false; }
};

void count(const void* instruction, const void* p, unsigned bytes, bool store) {
  if (!current || busy) return;
  const Busy here;
  Memory memory = Memory::global;
  unsigned owner = 0;
  for (unsigned rank = 0; rank < grid->cluster; ++rank) {
    const Block& b = *block_of_rank(rank);
    if (b.shared && Range{b.shared, b.shared + grid->shared_bytes}.has(p))
      memory = &b == current->block ? Memory::shared : Memory::peer, owner = rank;
  }
  if (memory == Memory::global &&
      (is_machinery(p) || parameters.has(p) || host_stack.has(p) || Range{__ehdr_start, _end}.has(p)))
    return;
  const uint3 b = current->block->index;
  const uint64_t block = (uint64_t{b.z} * grid->blocks.y + b.y) * grid->blocks.x + b.x;
  const unsigned time = passes[{instruction, block << 12 | current->linear, 0}]++;
  const auto [at, fresh] = open_requests.try_emplace({instruction, block << 12 | current->warp, time}, requests.size());
  if (fresh) requests.push_back({instruction, static_cast<unsigned>(launches.size() - 1), store, memory, {}});
  Request& request = requests[at->second];
  if (memory == Memory::peer) request.memory = memory;  // its first lane may have asked its own block
  request.lanes.push_back({reinterpret_cast<uintptr_t>(p), bytes, owner, current->lane});
}

struct Half {
  const void* instruction;
  const char* p;
  unsigned bytes;
  bool store;
};
std::vector<Half> halves;  // within a OneWord, which switches to no other thread
unsigned words_open = 0;

// ---- Packs: fields of one aligned pack that a thread takes with nothing between are one access, as nvcc makes it. --------------

std::set<size_t> pack_instructions;  // which they are only the source tells: by offset
struct Field {
  const void* instruction;
  uintptr_t address;
  unsigned bytes;
};
std::vector<Field> fields;  // of the thread that runs, which stores (or else loads) them
bool fields_stored = false;

void flush_fields() {
  std::vector<Field> taken;
  taken.swap(fields);
  std::map<uintptr_t, std::vector<Field>> units;
  for (const Field& f : taken) units[f.address / 16].push_back(f);
  for (auto& [unit, parts] : units) {
    unsigned covered = 0;  // a bit for each byte
    for (const Field& f : parts) covered |= ((1u << f.bytes) - 1) << f.address % 16;
    for (const unsigned width : {16u, 8u, 4u})
      for (unsigned at = 0; at < 16; at += width) {
        const unsigned bits = ((1u << width) - 1) << at;
        if ((covered & bits) != bits) continue;
        const Field* first = nullptr;
        for (Field& f : parts)
          if (f.bytes && f.address % 16 >= at && f.address % 16 + f.bytes <= at + width) {
            if (!first) first = &f;
            if (first != &f) f.bytes = 0;
          }
        if (!first || first->bytes > width) continue;
        count(first->instruction, reinterpret_cast<const void*>(unit * 16 + at), width, fields_stored);
        const_cast<Field*>(first)->bytes = 0;
      }
    for (const Field& f : parts)
      if (f.bytes) count(f.instruction, reinterpret_cast<const void*>(f.address), f.bytes, fields_stored);
  }
}

bool field(const void* instruction, const void* p, unsigned bytes, bool store) {
  if (pack_instructions.empty() || !current || busy) return false;
  const auto offset = static_cast<size_t>(static_cast<const char*>(instruction) - __ehdr_start) - 1;
  bool is_one;
  {
    const Busy here;
    is_one = bytes < 16 && pack_instructions.count(offset);
  }
  if (!fields.empty() && (store || fields_stored) && (store != fields_stored || !is_one)) flush_fields();
  if (!is_one) return false;
  const auto address = reinterpret_cast<uintptr_t>(p);
  for (const Field& f : fields)
    if (f.address < address + bytes && address < f.address + f.bytes) {  // again: no field of the same access
      flush_fields();
      break;
    }
  const Busy here;
  fields_stored = store;
  fields.push_back({instruction, address, bytes});
  return true;
}

void access(const void* instruction, const void* p, unsigned bytes, bool store) {
  if (field(instruction, p, bytes, store)) return;
  if (words_open && bytes == 2 && current && !busy)
    halves.push_back({instruction, static_cast<const char*>(p), bytes, store});
  else
    count(instruction, p, bytes, store);
}

// g++ calls a range what is no access of its own: of an odd length, which says how aligned its objects can be, or of 16, 8, 4 or
// 2 bytes with less alignment than that. A GPU takes it in pieces of that alignment.
void range(const void* instruction, const void* p, size_t bytes, bool store) {
  size_t piece = std::min<size_t>(bytes & -bytes, 16);
  if (piece == bytes) piece = std::max<size_t>(std::min<size_t>(bytes / 2, 4), 1);
  const char* const from = static_cast<const char*>(p);
  for (size_t at = 0; at < bytes; at += piece) count(instruction, from + at, static_cast<unsigned>(piece), store);
}

unsigned lanes_a_pass(unsigned bytes) { return bytes >= 16 ? 8 : bytes == 8 ? 16 : 32; }

struct Cost {
  uint64_t seen, ideal;
};

// In each pass, lanes that want different words of one bank of one block wait for one another.
Cost bank_passes(Request r) {
  // They come in any order: the last one to reach a barrier goes on first.
  std::stable_sort(r.lanes.begin(), r.lanes.end(), [](const Access& a, const Access& b) { return a.lane < b.lane; });
  const unsigned together = lanes_a_pass(r.lanes[0].bytes);
  Cost cost{0, (r.lanes.size() + together - 1) / together};
  for (size_t first = 0; first < r.lanes.size(); first += together) {
    std::map<std::pair<unsigned, uintptr_t>, std::set<uintptr_t>> words;
    for (size_t i = first; i < std::min(r.lanes.size(), first + together); ++i) {
      const Access& a = r.lanes[i];
      for (uintptr_t word = a.address / 4; word <= (a.address + a.bytes - 1) / 4; ++word)
        words[{a.rank, word % 32}].insert(word);
    }
    size_t most = 0;
    for (const auto& bank : words) most = std::max(most, bank.second.size());
    cost.seen += most;
  }
  return cost;
}

Cost sectors(const Request& r) {
  std::set<uintptr_t> touched, bytes;
  for (const Access& a : r.lanes) {
    for (uintptr_t s = a.address / 32; s <= (a.address + a.bytes - 1) / 32; ++s) touched.insert(s);
    for (uintptr_t b = a.address; b < a.address + a.bytes; ++b) bytes.insert(b);
  }
  return {touched.size(), (bytes.size() + 31) / 32};
}

std::string memory_of(const Request& r) {
  if (r.memory != Memory::global) return r.memory == Memory::shared ? "shared" : "shared of a peer";
  for (const Tensor& t : tensors)
    if (t.range.has(reinterpret_cast<const void*>(r.lanes[0].address))) return t.name;
  return "unnamed";
}

}  // namespace

void begin_launch(const Grid& launched, const void* arguments, size_t argument_bytes) {
  const void* const kernel = *static_cast<const void* const*>(arguments);  // a launch's Call begins with it
  launches.push_back({launched, kernel});
  open_requests.clear(), passes.clear();
  parameters = {static_cast<const char*>(arguments), static_cast<const char*>(arguments) + argument_bytes};
  pthread_attr_t attributes;
  void* low = nullptr;
  size_t size = 0;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    pthread_attr_getstack(&attributes, &low, &size);
    pthread_attr_destroy(&attributes);
  }
  host_stack = {static_cast<char*>(low), static_cast<char*>(low) + size};
}

void watch(const char* name, const void* p, size_t bytes) {
  tensors.push_back({name, {static_cast<const char*>(p), static_cast<const char*>(p) + bytes}});
}

void read(const void* instruction, const void* p, size_t bytes) {
  count(instruction, p, static_cast<unsigned>(bytes), false);
}

void packs(const char* file) {
  if (std::FILE* in = std::fopen(file, "r")) {
    for (size_t offset; std::fscanf(in, "%zx", &offset) == 1;) pack_instructions.insert(offset);
    std::fclose(in);
  }
}

void thread_waits() {
  if (!fields.empty()) flush_fields();
}

OneWord::OneWord() { ++words_open; }

OneWord::~OneWord() {
  if (--words_open) return;
  std::vector<Half> taken;
  taken.swap(halves);
  for (size_t i = 0; i < taken.size(); ++i) {
    Half& a = taken[i];
    for (size_t j = i + 1; a.bytes == 2 && j < taken.size(); ++j)
      if (const Half& b = taken[j];
          b.store == a.store && b.bytes == 2 && reinterpret_cast<uintptr_t>(a.p) % 4 == 0 && b.p == a.p + 2)
        a.bytes = 4, taken[j].bytes = 0;
    if (a.bytes) count(a.instruction, a.p, a.bytes, a.store);
  }
}

// A line for each launch: "launch", kernel, its offset in this file, blocks, threads a block, shared bytes, blocks a cluster.
// Then lines of: kernel's offset, instruction's offset, memory, load or store, width, requests, lanes, bytes, cost, ideal cost.
void report(const char* file) {
  struct Row {
    unsigned width = 0;
    uint64_t requests = 0, lanes = 0, bytes = 0;
    Cost cost{};
  };
  std::map<std::tuple<const void*, const void*, std::string, bool>, Row> rows;
  for (const Request& r : requests) {
    Row& row = rows[{launches[r.launch].kernel, r.instruction, memory_of(r), r.store}];
    ++row.requests, row.lanes += r.lanes.size();
    for (const Access& a : r.lanes) row.width = std::max(row.width, a.bytes), row.bytes += a.bytes;
    const Cost cost = r.memory == Memory::global ? sectors(r) : bank_passes(r);
    row.cost.seen += cost.seen, row.cost.ideal += cost.ideal;
  }
  Dl_info module{};
  dladdr(__ehdr_start, &module);
  const auto offset = [&](const void* p) {
    return static_cast<size_t>(static_cast<const char*>(p) - static_cast<char*>(module.dli_fbase));
  };
  if (std::FILE* out = std::fopen(file, "w")) {
    for (const auto& [g, kernel] : launches)
      std::fprintf(out, "launch\t%s\t%zx\t%zu\t%u\t%zu\t%u\n", g.kernel, offset(kernel),
                   size_t{g.blocks.x} * g.blocks.y * g.blocks.z, g.threads.x * g.threads.y * g.threads.z,
                   g.shared_bytes, g.cluster);
    for (const auto& [key, row] : rows) {
      const auto& [kernel, instruction, memory, store] = key;
      std::fprintf(out, "%zx\t%zx\t%s\t%s\t%u\t%zu\t%zu\t%zu\t%zu\t%zu\n", offset(kernel),
                   offset(instruction) - 1,  // the call's, not its return's
                   memory.c_str(), store ? "store" : "load", row.width, row.requests, row.lanes, row.bytes,
                   row.cost.seen, row.cost.ideal);
    }
    std::fclose(out);
  }
  tensors.clear(), launches.clear(), requests.clear();
}

}  // namespace hetkern::emulation::traffic

// ---- For the library, from Python. -----------------------------------------------------------------------------------------

extern "C" {
__attribute__((visibility("default"))) void hetkern_traffic_watch(const char* name, const void* p, size_t bytes) {
  hetkern::emulation::traffic::watch(name, p, bytes);
}
__attribute__((visibility("default"))) void hetkern_traffic_report(const char* file) {
  hetkern::emulation::traffic::report(file);
}

// ---- What -fsanitize=thread calls. -----------------------------------------------------------------------------------------

#define HETKERN_ACCESS(name, bytes, store)                                             \
  void __tsan_##name##bytes(void* p) {                                                 \
    hetkern::emulation::traffic::access(__builtin_return_address(0), p, bytes, store); \
  }
#define HETKERN_ACCESSES(bytes)                \
  HETKERN_ACCESS(read, bytes, false)           \
  HETKERN_ACCESS(write, bytes, true)           \
  HETKERN_ACCESS(unaligned_read, bytes, false) \
  HETKERN_ACCESS(unaligned_write, bytes, true) \
  HETKERN_ACCESS(volatile_read, bytes, false)  \
  HETKERN_ACCESS(volatile_write, bytes, true)
HETKERN_ACCESSES(1)
HETKERN_ACCESSES(2)
HETKERN_ACCESSES(4)
HETKERN_ACCESSES(8)
HETKERN_ACCESSES(16)
#undef HETKERN_ACCESS
#undef HETKERN_ACCESSES

void __tsan_read_range(void* p, size_t bytes) {
  hetkern::emulation::traffic::range(__builtin_return_address(0), p, bytes, false);
}
void __tsan_write_range(void* p, size_t bytes) {
  hetkern::emulation::traffic::range(__builtin_return_address(0), p, bytes, true);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}

// An atomic is one access; what it changes at hardware's speed is not counted.
#define HETKERN_ATOMICS(bits, T)                                                                       \
  T __tsan_atomic##bits##_load(const T* p, int) {                                                      \
    hetkern::emulation::traffic::count(__builtin_return_address(0), p, bits / 8, false);               \
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);                                                       \
  }                                                                                                    \
  void __tsan_atomic##bits##_store(T* p, T value, int) {                                               \
    hetkern::emulation::traffic::count(__builtin_return_address(0), p, bits / 8, true);                \
    __atomic_store_n(p, value, __ATOMIC_RELEASE);                                                      \
  }                                                                                                    \
  T __tsan_atomic##bits##_fetch_add(T* p, T value, int) {                                              \
    hetkern::emulation::traffic::count(__builtin_return_address(0), p, bits / 8, true);                \
    return __atomic_fetch_add(p, value, __ATOMIC_ACQ_REL);                                             \
  }                                                                                                    \
  int __tsan_atomic##bits##_compare_exchange_strong(T* p, T* expected, T value, int, int) {            \
    hetkern::emulation::traffic::count(__builtin_return_address(0), p, bits / 8, true);                \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE); \
  }
HETKERN_ATOMICS(8, char)
HETKERN_ATOMICS(32, int)
HETKERN_ATOMICS(64, long)
#undef HETKERN_ATOMICS
}
