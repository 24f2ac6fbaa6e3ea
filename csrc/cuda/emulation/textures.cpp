// Arrays, textures and surfaces as launchers make them.                                                   (reads and writes: textures.h)
#include <cstdlib>

#include "cuda_words.h"

using hetkern::emulation::Level;
using hetkern::emulation::Texture;

// What CUDA's headers leave open.
struct cudaArray {
  cudaChannelFormatDesc channels;
  cudaExtent extent;  // as it was given: 0 where there is no such dimension
  unsigned flags;
  Level level;
  bool part_of_mipmap;
};
struct cudaMipmappedArray {
  int levels;
  cudaArray level[16];
};

namespace {

size_t texel_bytes(const cudaChannelFormatDesc& c) { return static_cast<size_t>(c.x + c.y + c.z + c.w) / 8; }
int at_least_one(size_t n) { return n == 0 ? 1 : static_cast<int>(n); }

void make(cudaArray& a, const cudaChannelFormatDesc& channels, cudaExtent extent, unsigned flags) {
  a = {channels, extent, flags, {}, false};
  a.level.width = at_least_one(extent.width), a.level.height = at_least_one(extent.height);
  a.level.depth = at_least_one(extent.depth);
  a.level.pitch = static_cast<size_t>(a.level.width) * texel_bytes(channels);
  a.level.slice = a.level.pitch * static_cast<size_t>(a.level.height);
  const size_t bytes = a.level.slice * static_cast<size_t>(a.level.depth);
  a.level.data = static_cast<char*>(std::malloc(bytes));
  if (!a.level.data) throw std::bad_alloc();
  std::memset(a.level.data, 0xff, bytes);  // NaN: a GPU's is whatever was there
}

void copy_rows(char* to, size_t to_pitch, const char* from, size_t from_pitch, size_t bytes, size_t rows) {
  for (size_t row = 0; row < rows; ++row) std::memmove(to + row * to_pitch, from + row * from_pitch, bytes);
}

Texture texture(const cudaResourceDesc& r) {
  Texture t{};
  t.levels = 1;
  if (r.resType == cudaResourceTypeArray) {
    const cudaArray& a = *r.res.array.array;
    t.channels = a.channels, t.level[0] = a.level, t.flags = a.flags;
  } else if (r.resType == cudaResourceTypeMipmappedArray) {
    const cudaMipmappedArray& m = *r.res.mipmap.mipmap;
    t.channels = m.level[0].channels, t.levels = m.levels, t.flags = m.level[0].flags;
    for (int i = 0; i < m.levels; ++i) t.level[i] = m.level[i].level;
  } else if (r.resType == cudaResourceTypeLinear) {
    const auto& l = r.res.linear;
    t.channels = l.desc, t.linear = true;
    t.level[0] = {static_cast<char*>(l.devPtr),
                  static_cast<int>(l.sizeInBytes / texel_bytes(l.desc)),
                  1,
                  1,
                  l.sizeInBytes,
                  l.sizeInBytes};
  } else {
    const auto& p = r.res.pitch2D;
    t.channels = p.desc;
    t.level[0] = {
        static_cast<char*>(p.devPtr), static_cast<int>(p.width), static_cast<int>(p.height), 1, p.pitchInBytes,
        p.pitchInBytes * p.height};
    if (p.pitchInBytes < p.width * texel_bytes(p.desc))
      throw std::runtime_error("a texture's pitch of " + std::to_string(p.pitchInBytes) +
                               " bytes is less than its row of " + std::to_string(p.width * texel_bytes(p.desc)));
  }
  t.layered = (t.flags & cudaArrayLayered) != 0;
  return t;
}

}  // namespace

extern "C" {

#define HETKERN_RUNTIME(name, ...) __attribute__((visibility("hidden"))) cudaError_t CUDARTAPI name(__VA_ARGS__)

__attribute__((visibility("hidden"))) cudaChannelFormatDesc CUDARTAPI
cudaCreateChannelDesc(int x, int y, int z, int w, cudaChannelFormatKind kind) {
  return {x, y, z, w, kind};
}

HETKERN_RUNTIME(cudaMalloc3DArray, cudaArray_t* array, const cudaChannelFormatDesc* channels, cudaExtent extent,
                unsigned flags) {
  *array = new cudaArray;
  return make(**array, *channels, extent, flags), cudaSuccess;
}
HETKERN_RUNTIME(cudaMallocArray, cudaArray_t* array, const cudaChannelFormatDesc* channels, size_t width, size_t height,
                unsigned flags) {
  return cudaMalloc3DArray(array, channels, {width, height, 0}, flags);
}
HETKERN_RUNTIME(cudaFreeArray, cudaArray_t array) {
  if (array && !array->part_of_mipmap) std::free(array->level.data), delete array;
  return cudaSuccess;
}
HETKERN_RUNTIME(cudaArrayGetInfo, cudaChannelFormatDesc* channels, cudaExtent* extent, unsigned* flags,
                cudaArray_t array) {
  if (channels) *channels = array->channels;
  if (extent) *extent = array->extent;
  if (flags) *flags = array->flags;
  return cudaSuccess;
}
HETKERN_RUNTIME(cudaGetChannelDesc, cudaChannelFormatDesc* channels, cudaArray_const_t array) {
  return *channels = array->channels, cudaSuccess;
}
HETKERN_RUNTIME(cudaMallocMipmappedArray, cudaMipmappedArray_t* mipmap, const cudaChannelFormatDesc* channels,
                cudaExtent extent, unsigned levels, unsigned flags) {
  if (levels == 0 || levels > 16) return cudaErrorInvalidValue;
  *mipmap = new cudaMipmappedArray{static_cast<int>(levels), {}};
  for (unsigned i = 0; i < levels; ++i) {
    make((*mipmap)->level[i], *channels, extent, flags);
    (*mipmap)->level[i].part_of_mipmap = true;
    for (size_t* n : {&extent.width, &extent.height, &extent.depth}) *n = *n > 1 ? *n / 2 : *n;
  }
  return cudaSuccess;
}
HETKERN_RUNTIME(cudaGetMipmappedArrayLevel, cudaArray_t* array, cudaMipmappedArray_const_t mipmap, unsigned level) {
  if (level >= static_cast<unsigned>(mipmap->levels)) return cudaErrorInvalidValue;
  return *array = const_cast<cudaArray_t>(&mipmap->level[level]), cudaSuccess;
}
HETKERN_RUNTIME(cudaFreeMipmappedArray, cudaMipmappedArray_t mipmap) {
  for (int i = 0; mipmap && i < mipmap->levels; ++i) std::free(mipmap->level[i].level.data);
  return delete mipmap, cudaSuccess;
}

HETKERN_RUNTIME(cudaMallocPitch, void** p, size_t* pitch, size_t width, size_t height) {
  *pitch = (width + 511) / 512 * 512;
  return cudaMalloc(p, *pitch * height);
}
HETKERN_RUNTIME(cudaMemcpy2D, void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t bytes, size_t rows,
                cudaMemcpyKind) {
  return copy_rows(static_cast<char*>(to), to_pitch, static_cast<const char*>(from), from_pitch, bytes, rows),
         cudaSuccess;
}
HETKERN_RUNTIME(cudaMemcpy2DToArray, cudaArray_t array, size_t x, size_t y, const void* from, size_t pitch,
                size_t bytes, size_t rows, cudaMemcpyKind) {
  const Level& l = array->level;
  if (x + bytes > l.pitch || y + rows > static_cast<size_t>(l.height)) return cudaErrorInvalidValue;
  return copy_rows(l.data + y * l.pitch + x, l.pitch, static_cast<const char*>(from), pitch, bytes, rows), cudaSuccess;
}
HETKERN_RUNTIME(cudaMemcpy2DToArrayAsync, cudaArray_t array, size_t x, size_t y, const void* from, size_t pitch,
                size_t bytes, size_t rows, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy2DToArray(array, x, y, from, pitch, bytes, rows, kind);
}
HETKERN_RUNTIME(cudaMemcpy2DFromArray, void* to, size_t pitch, cudaArray_const_t array, size_t x, size_t y,
                size_t bytes, size_t rows, cudaMemcpyKind) {
  const Level& l = array->level;
  if (x + bytes > l.pitch || y + rows > static_cast<size_t>(l.height)) return cudaErrorInvalidValue;
  return copy_rows(static_cast<char*>(to), pitch, l.data + y * l.pitch + x, l.pitch, bytes, rows), cudaSuccess;
}
// Between an array and memory, or two of either; an extent is in texels where an array takes part, else in bytes.
HETKERN_RUNTIME(cudaMemcpy3D, const cudaMemcpy3DParms* p) {
  struct Side {
    char* data;
    size_t pitch, slice;
  };
  const cudaArray* any = p->srcArray ? p->srcArray : p->dstArray;
  const size_t texel = any ? texel_bytes(any->channels) : 1;
  const auto side = [&](cudaArray_t array, const cudaPitchedPtr& memory, const cudaPos& at) -> Side {
    Side s = array ? Side{array->level.data, array->level.pitch, array->level.slice}
                   : Side{static_cast<char*>(memory.ptr), memory.pitch, memory.pitch * memory.ysize};
    s.data += at.z * s.slice + at.y * s.pitch + at.x * (array ? texel : 1);
    return s;
  };
  const Side from = side(p->srcArray, p->srcPtr, p->srcPos), to = side(p->dstArray, p->dstPtr, p->dstPos);
  for (size_t z = 0; z < p->extent.depth; ++z)
    copy_rows(to.data + z * to.slice, to.pitch, from.data + z * from.slice, from.pitch, p->extent.width * texel,
              p->extent.height);
  return cudaSuccess;
}

HETKERN_RUNTIME(cudaCreateTextureObject, cudaTextureObject_t* object, const cudaResourceDesc* resource,
                const cudaTextureDesc* how, const cudaResourceViewDesc* view) {
  Texture t = texture(*resource);
  t.how = *how;
  const bool integers = t.channels.f == cudaChannelFormatKindSigned || t.channels.f == cudaChannelFormatKindUnsigned;
  if (view || how->sRGB) throw std::runtime_error("a texture's resource view and sRGB are not known to the emulation");
  if (how->filterMode == cudaFilterModeLinear && integers &&
      (how->readMode == cudaReadModeElementType || t.channels.x == 32))
    throw std::runtime_error(
        "a texture of integers is filtered: CUDA filters floats alone (cudaReadModeNormalizedFloat)");
  *object = reinterpret_cast<cudaTextureObject_t>(new Texture(t));
  return cudaSuccess;
}
HETKERN_RUNTIME(cudaDestroyTextureObject, cudaTextureObject_t object) {
  return delete reinterpret_cast<Texture*>(object), cudaSuccess;
}
HETKERN_RUNTIME(cudaCreateSurfaceObject, cudaSurfaceObject_t* object, const cudaResourceDesc* resource) {
  if (resource->resType != cudaResourceTypeArray) return cudaErrorInvalidValue;
  *object = reinterpret_cast<cudaSurfaceObject_t>(new Texture(texture(*resource)));
  return cudaSuccess;
}
HETKERN_RUNTIME(cudaDestroySurfaceObject, cudaSurfaceObject_t object) {
  return delete reinterpret_cast<Texture*>(object), cudaSuccess;
}
}
