// Textures and surfaces as the programming guide describes them: addressing, filtering with eight bits of a coordinate's
// fraction, integers read as fractions.                                             (part of cuda_words.h; host side: textures.cpp)
//
// An object is a pointer to the struct here. A texel is loaded where the kernel stands, so that the sanitizers see it.
#pragma once
#include "short_floats.h"

namespace hetkern::emulation {

struct Level {  // of a mipmap; the only one of all else
  char* data;
  int width, height, depth;  // in texels; 1 where there is no such dimension; layers are the depth
  size_t pitch, slice;       // bytes from row to row and from depth to depth
};

struct Texture {
  cudaChannelFormatDesc channels;
  cudaTextureDesc how;
  bool linear, layered;  // memory without rows; its last dimension is a number of layers
  unsigned flags;
  int levels;
  Level level[16];
  int texel() const { return (channels.x + channels.y + channels.z + channels.w) / 8; }
  int parts() const { return (channels.x > 0) + (channels.y > 0) + (channels.z > 0) + (channels.w > 0); }
};

inline const Texture& texture_of(unsigned long long object, const char* what, Site site) {
  if (object == 0) fail(site, "%s of an object that is 0", what);
  return *reinterpret_cast<const Texture*>(object);
}

template <class T, class = void>
struct PartOf {
  using type = T;
};
template <class T>
struct PartOf<T, std::void_t<decltype(T::x)>> {
  using type = decltype(T::x);
};

// One channel of the texel at p, as a read gives it.
template <class Part>
inline Part texel_part(const Texture& t, const char* p, int part, Site site) {
  const int bits = t.channels.x;
  if (part >= t.parts()) return Part{};
  const bool floats = t.channels.f == cudaChannelFormatKindFloat,
             is_signed = t.channels.f == cudaChannelFormatKindSigned;
  uint32_t raw;
  p += part * bits / 8;
  if (bits == 8)
    raw = *reinterpret_cast<const uint8_t*>(p);
  else if (bits == 16)
    raw = *reinterpret_cast<const uint16_t*>(p);
  else
    raw = *reinterpret_cast<const uint32_t*>(p);
  const int value = bits == 8    ? static_cast<int8_t>(raw)
                    : bits == 16 ? static_cast<int16_t>(raw)
                                 : static_cast<int>(raw);
  const bool fraction = !floats && bits < 32 && t.how.readMode == cudaReadModeNormalizedFloat;
  if constexpr (std::is_same_v<Part, float>) {
    if (floats) return bits == 16 ? static_cast<float>(F16(static_cast<uint16_t>(raw))) : __uint_as_float(raw);
    if (!fraction) fail(site, "a texture of integers is read as float, without cudaReadModeNormalizedFloat");
    if (is_signed) return std::fmax(static_cast<float>(value) / static_cast<float>((1 << (bits - 1)) - 1), -1.0f);
    return static_cast<float>(raw) / static_cast<float>((1u << bits) - 1);
  } else {
    if (floats || fraction) fail(site, "a texture whose reads give floats is read as integers");
    return is_signed ? static_cast<Part>(value) : static_cast<Part>(raw);
  }
}

// Along one axis: the texels that a coordinate means, and the weight of the second.
struct Along {
  int at[2];
  bool inside[2];
  float weight;
};
inline Along along(const Texture& t, int axis, float x, int n) {
  const bool filtered = t.how.filterMode == cudaFilterModeLinear;
  cudaTextureAddressMode mode = t.how.addressMode[axis];
  if (!t.how.normalizedCoords && mode != cudaAddressModeBorder) mode = cudaAddressModeClamp;
  if (t.how.normalizedCoords) {
    const float whole = std::floor(x);
    if (mode == cudaAddressModeWrap) x -= whole;
    if (mode == cudaAddressModeMirror) x = std::fmod(whole, 2.0f) != 0 ? 1 - (x - whole) : x - whole;
    x *= static_cast<float>(n);
  }
  if (!(x == x)) x = 0;
  x = std::fmin(std::fmax(x, -1e9f), 1e9f) - (filtered ? 0.5f : 0.0f);
  const int first = static_cast<int>(std::floor(x));
  Along r{};
  r.weight = filtered ? std::floor((x - static_cast<float>(first)) * 256 + 0.5f) / 256 : 0.0f;
  for (int i = 0; i < 2; ++i) {
    int at = first + i;
    r.inside[i] = mode != cudaAddressModeBorder || (at >= 0 && at < n);
    if (mode == cudaAddressModeWrap) at = (at % n + n) % n;
    if (mode == cudaAddressModeMirror) at = at < 0 ? -1 - at : at >= n ? 2 * n - 1 - at : at;
    r.at[i] = at < 0 ? 0 : at >= n ? n - 1 : at;
  }
  return r;
}
inline Along layer_of(int layer, int n) {
  const int at = layer < 0 ? 0 : layer >= n ? n - 1 : layer;
  return {{at, at}, {true, true}, 0.0f};
}

template <class T>
inline T sampled(const Texture& t, const Level& level, const Along& x, const Along& y, const Along& z, Site site) {
  using Part = typename PartOf<T>::type;
  constexpr int kParts = sizeof(T) / sizeof(Part);
  Part parts[kParts] = {};
  for (int corner = 0; corner < 8; ++corner) {
    const int i = corner & 1, j = corner >> 1 & 1, k = corner >> 2;
    const float weight = (i ? x.weight : 1 - x.weight) * (j ? y.weight : 1 - y.weight) * (k ? z.weight : 1 - z.weight);
    if (weight == 0) continue;
    const bool inside = x.inside[i] && y.inside[j] && z.inside[k];
    const char* p = level.data + static_cast<size_t>(z.at[k]) * level.slice +
                    static_cast<size_t>(y.at[j]) * level.pitch +
                    static_cast<size_t>(x.at[i]) * static_cast<size_t>(t.texel());
    for (int part = 0; part < kParts; ++part) {
      const Part value = inside ? texel_part<Part>(t, p, part, site) : static_cast<Part>(t.how.borderColor[part & 3]);
      if constexpr (std::is_same_v<Part, float>)
        parts[part] = weight == 1 ? value : std::fma(weight, value, parts[part]);
      else
        parts[part] = value;
    }
  }
  T result;
  std::memcpy(static_cast<void*>(&result), parts, sizeof result);
  return result;
}

constexpr Along kOnly{{0, 0}, {true, true}, 0.0f};

// Of one level; `dimensions` have a coordinate each.
template <class T>
inline T sampled_at(const Texture& t, int number, int dimensions, float x, float y, float z, int layer, Site site) {
  const Level& level = t.level[number < 0 ? 0 : number >= t.levels ? t.levels - 1 : number];
  if (t.linear) fail(site, "a texture of linear memory is read by tex1Dfetch alone");
  const Along depth = t.layered || layer >= 0 ? layer_of(layer, level.depth) : kOnly;
  return sampled<T>(t, level, along(t, 0, x, level.width), dimensions > 1 ? along(t, 1, y, level.height) : kOnly,
                    dimensions > 2 ? along(t, 2, z, level.depth) : depth, site);
}
template <class T>
inline T sampled_between(const Texture& t, int dimensions, float x, float y, float z, int layer, float lod, Site site) {
  lod = std::fmin(std::fmax(lod + t.how.mipmapLevelBias, t.how.minMipmapLevelClamp),
                  t.levels > 1 ? std::fmin(t.how.maxMipmapLevelClamp, static_cast<float>(t.levels - 1)) : 0.0f);
  const int first = static_cast<int>(std::floor(t.how.mipmapFilterMode == cudaFilterModeLinear ? lod : lod + 0.5f));
  T value = sampled_at<T>(t, first, dimensions, x, y, z, layer, site);
  using Part = typename PartOf<T>::type;
  if constexpr (std::is_same_v<Part, float>) {
    const float weight = std::floor((lod - static_cast<float>(first)) * 256 + 0.5f) / 256;
    if (t.how.mipmapFilterMode == cudaFilterModeLinear && weight > 0) {
      const T next = sampled_at<T>(t, first + 1, dimensions, x, y, z, layer, site);
      float a[sizeof(T) / 4], b[sizeof(T) / 4];
      std::memcpy(a, &value, sizeof value), std::memcpy(b, &next, sizeof next);
      for (size_t i = 0; i < sizeof(T) / 4; ++i) a[i] = (1 - weight) * a[i] + weight * b[i];
      std::memcpy(static_cast<void*>(&value), a, sizeof value);
    }
  }
  return value;
}

}  // namespace hetkern::emulation

// ---- Reads. ------------------------------------------------------------------------------------------------------------------

#define HETKERN_SITE hetkern::emulation::Site site = hetkern::emulation::Site::here()
// name(object, …) and name(&result, object, …)
#define HETKERN_TEXTURE(name, parameters, arguments, value)                                            \
  template <class T>                                                                                   \
  inline T name(cudaTextureObject_t object, HETKERN_UNPACKED parameters, HETKERN_SITE) {               \
    const hetkern::emulation::Texture& t = hetkern::emulation::texture_of(object, #name, site);        \
    return hetkern::emulation::value;                                                                  \
  }                                                                                                    \
  template <class T>                                                                                   \
  inline void name(T* result, cudaTextureObject_t object, HETKERN_UNPACKED parameters, HETKERN_SITE) { \
    *result = name<T>(object, HETKERN_UNPACKED arguments, site);                                       \
  }
#define HETKERN_UNPACKED(...) __VA_ARGS__
HETKERN_TEXTURE(tex1D, (float x), (x), sampled_at<T>(t, 0, 1, x, 0, 0, -1, site))
HETKERN_TEXTURE(tex2D, (float x, float y), (x, y), sampled_at<T>(t, 0, 2, x, y, 0, -1, site))
HETKERN_TEXTURE(tex3D, (float x, float y, float z), (x, y, z), sampled_at<T>(t, 0, 3, x, y, z, -1, site))
HETKERN_TEXTURE(tex1DLayered, (float x, int layer), (x, layer), sampled_at<T>(t, 0, 1, x, 0, 0, layer, site))
HETKERN_TEXTURE(tex2DLayered, (float x, float y, int layer), (x, y, layer),
                sampled_at<T>(t, 0, 2, x, y, 0, layer, site))
HETKERN_TEXTURE(tex1DLod, (float x, float lod), (x, lod), sampled_between<T>(t, 1, x, 0, 0, -1, lod, site))
HETKERN_TEXTURE(tex2DLod, (float x, float y, float lod), (x, y, lod), sampled_between<T>(t, 2, x, y, 0, -1, lod, site))
HETKERN_TEXTURE(tex3DLod, (float x, float y, float z, float lod), (x, y, z, lod),
                sampled_between<T>(t, 3, x, y, z, -1, lod, site))
#undef HETKERN_TEXTURE
#undef HETKERN_UNPACKED

// Past the end there is 0.
template <class T>
inline T tex1Dfetch(cudaTextureObject_t object, int i, HETKERN_SITE) {
  namespace emulation = hetkern::emulation;
  const emulation::Texture& t = emulation::texture_of(object, "tex1Dfetch", site);
  if (i < 0 || i >= t.level[0].width) return T{};
  const emulation::Along x{{i, i}, {true, true}, 0.0f};
  return emulation::sampled<T>(t, t.level[0], x, emulation::kOnly, emulation::kOnly, site);
}
template <class T>
inline void tex1Dfetch(T* result, cudaTextureObject_t object, int i, HETKERN_SITE) {
  *result = tex1Dfetch<T>(object, i, site);
}

// One channel of the four texels that a filtered read would take: (0, 1), (1, 1), (1, 0), (0, 0).
template <class T>
inline T tex2Dgather(cudaTextureObject_t object, float x, float y, int part = 0, HETKERN_SITE) {
  namespace emulation = hetkern::emulation;
  emulation::Texture t = emulation::texture_of(object, "tex2Dgather", site);
  t.how.filterMode = cudaFilterModeLinear;
  using Part = typename emulation::PartOf<T>::type;
  static_assert(sizeof(T) == 4 * sizeof(Part), "tex2Dgather gives four numbers");
  const emulation::Along across = emulation::along(t, 0, x, t.level[0].width);
  const emulation::Along down = emulation::along(t, 1, y, t.level[0].height);
  constexpr int kOrder[4][2] = {{0, 1}, {1, 1}, {1, 0}, {0, 0}};
  Part parts[4];
  for (int n = 0; n < 4; ++n) {
    const int i = kOrder[n][0], j = kOrder[n][1];
    const char* p = t.level[0].data + static_cast<size_t>(down.at[j]) * t.level[0].pitch +
                    static_cast<size_t>(across.at[i]) * static_cast<size_t>(t.texel());
    parts[n] = across.inside[i] && down.inside[j] ? emulation::texel_part<Part>(t, p, part, site) : Part{};
  }
  T result;
  std::memcpy(static_cast<void*>(&result), parts, sizeof result);
  return result;
}

// The face by the largest part of a direction: +x, -x, +y, -y, +z, -z.
template <class T>
inline T texCubemap(cudaTextureObject_t object, float x, float y, float z, HETKERN_SITE) {
  const float a = std::fabs(x), b = std::fabs(y), c = std::fabs(z);
  const hetkern::emulation::Texture& t = hetkern::emulation::texture_of(object, "texCubemap", site);
  int face;
  float s, r, m;
  if (a >= b && a >= c)
    face = x >= 0 ? 0 : 1, m = a, s = x >= 0 ? -z : z, r = -y;
  else if (b >= c)
    face = y >= 0 ? 2 : 3, m = b, s = x, r = y >= 0 ? z : -z;
  else
    face = z >= 0 ? 4 : 5, m = c, s = z >= 0 ? x : -x, r = -y;
  hetkern::emulation::Texture flat = t;
  flat.how.normalizedCoords = 1;
  flat.how.addressMode[0] = flat.how.addressMode[1] = cudaAddressModeClamp;
  return hetkern::emulation::sampled_at<T>(flat, 0, 2, (s / m + 1) / 2, (r / m + 1) / 2, 0, face, site);
}

// ---- Surfaces: x in bytes. ---------------------------------------------------------------------------------------------------

namespace hetkern::emulation {

// Where it is; null: outside, and the mode reads 0 there and writes nothing.
template <class T>
inline T* surface_place(cudaSurfaceObject_t object, int x, int y, int z, cudaSurfaceBoundaryMode mode, const char* what,
                        Site site) {
  const Texture& t = texture_of(object, what, site);
  const Level& level = t.level[0];
  const int bytes = level.width * t.texel(), size = static_cast<int>(sizeof(T));
  if (x % size != 0) fail(site, "%s of %d bytes at byte %d of a row: x counts bytes and is aligned", what, size, x);
  const bool inside = x >= 0 && x + size <= bytes && y >= 0 && y < level.height && z >= 0 && z < level.depth;
  if (!inside && mode == cudaBoundaryModeTrap)
    fail(site, "%s at byte %d, row %d, depth %d of a surface of %d bytes by %d by %d", what, x, y, z, bytes,
         level.height, level.depth);
  if (!inside && mode == cudaBoundaryModeZero) return nullptr;
  const auto within = [](int i, int n) { return static_cast<size_t>(i < 0 ? 0 : i >= n ? n - 1 : i); };
  return reinterpret_cast<T*>(level.data + within(z, level.depth) * level.slice +
                              within(y, level.height) * level.pitch +
                              (x < 0              ? 0
                               : x + size > bytes ? static_cast<size_t>(bytes - size)
                                                  : static_cast<size_t>(x)));
}

}  // namespace hetkern::emulation

#define HETKERN_SURFACE(name, parameters, x, y, z)                                                           \
  template <class T>                                                                                         \
  inline T name##read(cudaSurfaceObject_t object, HETKERN_UNPACKED parameters,                               \
                      cudaSurfaceBoundaryMode mode = cudaBoundaryModeTrap, HETKERN_SITE) {                   \
    const T* p = hetkern::emulation::surface_place<T>(object, x, y, z, mode, #name "read", site);            \
    return p ? *p : T{};                                                                                     \
  }                                                                                                          \
  template <class T>                                                                                         \
  inline void name##read(T* result, cudaSurfaceObject_t object, HETKERN_UNPACKED parameters,                 \
                         cudaSurfaceBoundaryMode mode = cudaBoundaryModeTrap, HETKERN_SITE) {                \
    const T* p = hetkern::emulation::surface_place<T>(object, x, y, z, mode, #name "read", site);            \
    *result = p ? *p : T{};                                                                                  \
  }                                                                                                          \
  template <class T>                                                                                         \
  inline void name##write(T value, cudaSurfaceObject_t object, HETKERN_UNPACKED parameters,                  \
                          cudaSurfaceBoundaryMode mode = cudaBoundaryModeTrap, HETKERN_SITE) {               \
    if (T* p = hetkern::emulation::surface_place<T>(object, x, y, z, mode, #name "write", site)) *p = value; \
  }
#define HETKERN_UNPACKED(...) __VA_ARGS__
HETKERN_SURFACE(surf1D, (int x), x, 0, 0)
HETKERN_SURFACE(surf2D, (int x, int y), x, y, 0)
HETKERN_SURFACE(surf3D, (int x, int y, int z), x, y, z)
HETKERN_SURFACE(surf1DLayered, (int x, int layer), x, 0, layer)
HETKERN_SURFACE(surf2DLayered, (int x, int y, int layer), x, y, layer)
HETKERN_SURFACE(surfCubemap, (int x, int y, int face), x, y, face)
#undef HETKERN_SURFACE
#undef HETKERN_UNPACKED
#undef HETKERN_SITE
