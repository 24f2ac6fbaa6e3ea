// Textures and surfaces as image kernels use them.
#include <cstdint>
#include <cstring>

#include "cuda/device/launch.cuh"

namespace {

cudaTextureObject_t made(const cudaResourceDesc& resource, int mode, bool filtered, bool normalized, bool fraction) {
  cudaTextureDesc how;
  std::memset(&how, 0, sizeof how);
  for (auto& each : how.addressMode) each = static_cast<cudaTextureAddressMode>(mode);
  how.filterMode = filtered ? cudaFilterModeLinear : cudaFilterModePoint;
  how.readMode = fraction ? cudaReadModeNormalizedFloat : cudaReadModeElementType;
  how.normalizedCoords = normalized;
  how.borderColor[0] = 7;
  cudaTextureObject_t object;
  cudaCreateTextureObject(&object, &resource, &how, nullptr);
  return object;
}
template <class T>
cudaTextureObject_t of_rows(const T* x, int width, int height, int mode, bool filtered, bool normalized,
                            bool fraction) {
  cudaResourceDesc resource{};
  resource.resType = cudaResourceTypePitch2D;
  resource.res.pitch2D.devPtr = const_cast<T*>(x);
  resource.res.pitch2D.desc = cudaCreateChannelDesc<T>();
  resource.res.pitch2D.width = width, resource.res.pitch2D.height = height;
  resource.res.pitch2D.pitchInBytes = width * sizeof(T);
  return made(resource, mode, filtered, normalized, fraction);
}
cudaTextureObject_t of_array(cudaArray_t array, bool filtered, bool normalized) {
  cudaResourceDesc resource{};
  resource.resType = cudaResourceTypeArray, resource.res.array.array = array;
  return made(resource, cudaAddressModeClamp, filtered, normalized, false);
}
cudaArray_t volume(const float* x, int width, int height, int depth, unsigned flags) {
  cudaArray_t array;
  const cudaChannelFormatDesc channels = cudaCreateChannelDesc<float>();
  const cudaExtent extent = make_cudaExtent(width, height, depth);
  cudaMalloc3DArray(&array, &channels, extent, flags);
  cudaMemcpy3DParms copy{};
  copy.srcPtr = make_cudaPitchedPtr(const_cast<float*>(x), width * sizeof(float), width, height);
  copy.dstArray = array, copy.extent = extent, copy.kind = cudaMemcpyDeviceToDevice;
  cudaMemcpy3D(&copy);
  return array;
}

__global__ void __launch_bounds__(64)
    read_kernel(cudaTextureObject_t t, const float* u, const float* v, float* y, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = tex2D<float>(t, u[i], v[i]);
}
__global__ void __launch_bounds__(64) pixels_kernel(cudaTextureObject_t t, float4* y, int width) {
  const int i = threadIdx.x;
  tex2D(&y[i], t, (i % width) + 0.5f, (i / width) + 0.5f);
}
__global__ void __launch_bounds__(64) fetch_kernel(cudaTextureObject_t t, int* y, int n) {
  const int i = threadIdx.x;
  if (i < n) y[i] = tex1Dfetch<int>(t, i - 1);
}
__global__ void __launch_bounds__(64) volume_kernel(cudaTextureObject_t t, const float* at, float* y, int n) {
  const int i = threadIdx.x;
  if (i < n) y[i] = tex3D<float>(t, at[3 * i], at[3 * i + 1], at[3 * i + 2]);
}
__global__ void __launch_bounds__(64) layers_kernel(cudaTextureObject_t t, float* y, int n) {
  const int i = threadIdx.x;
  if (i < n) y[i] = tex2DLayered<float>(t, 1.5f, 0.5f, i);
}
__global__ void __launch_bounds__(64) gather_kernel(cudaTextureObject_t t, float4* y) {
  y[0] = tex2Dgather<float4>(t, 1.0f, 1.0f);
}
__global__ void __launch_bounds__(64)
    surface_kernel(cudaSurfaceObject_t from, cudaSurfaceObject_t to, int width, int past) {
  const int x = threadIdx.x, y = threadIdx.y;
  const float value = surf2Dread<float>(from, (x + past) * static_cast<int>(sizeof(float)), y);
  surf2Dwrite(2 * value, to, (width - 1 - x) * static_cast<int>(sizeof(float)), y);
}

}  // namespace

extern "C" void read(const float* x, const float* u, const float* v, float* y, int width, int height, int n, int mode,
                     bool filtered, bool normalized, void* stream) {
  const cudaTextureObject_t t = of_rows(x, width, height, mode, filtered, normalized, false);
  HETKERN_LAUNCH(read_kernel, 1, 64, 0, stream, t, u, v, y, n);
  cudaDestroyTextureObject(t);
}
extern "C" void pixels(const uint8_t* x, float* y, int width, int height, bool fraction, bool filtered, void* stream) {
  const auto* colours = reinterpret_cast<const uchar4*>(x);
  const cudaTextureObject_t t = of_rows(colours, width, height, cudaAddressModeClamp, filtered, false, fraction);
  HETKERN_LAUNCH(pixels_kernel, 1, width * height, 0, stream, t, reinterpret_cast<float4*>(y), width);
  cudaDestroyTextureObject(t);
}
extern "C" void fetch(const int* x, int* y, int n, void* stream) {
  cudaResourceDesc resource{};
  resource.resType = cudaResourceTypeLinear;
  resource.res.linear.devPtr = const_cast<int*>(x);
  resource.res.linear.desc = cudaCreateChannelDesc<int>();
  resource.res.linear.sizeInBytes = n * sizeof(int);
  const cudaTextureObject_t t = made(resource, cudaAddressModeClamp, false, false, false);
  HETKERN_LAUNCH(fetch_kernel, 1, 64, 0, stream, t, y, n + 2);
  cudaDestroyTextureObject(t);
}
extern "C" void volumes(const float* x, const float* at, float* y, float* layers, float* gathered, int width,
                        int height, int depth, int n, void* stream) {
  const cudaArray_t solid = volume(x, width, height, depth, 0),
                    layered = volume(x, width, height, depth, cudaArrayLayered);
  const cudaTextureObject_t t = of_array(solid, true, false), l = of_array(layered, false, false);
  HETKERN_LAUNCH(volume_kernel, 1, 64, 0, stream, t, at, y, n);
  HETKERN_LAUNCH(layers_kernel, 1, 64, 0, stream, l, layers, depth);
  HETKERN_LAUNCH(gather_kernel, 1, 1, 0, stream, l, reinterpret_cast<float4*>(gathered));
  cudaDestroyTextureObject(t), cudaDestroyTextureObject(l), cudaFreeArray(solid), cudaFreeArray(layered);
}
extern "C" void surfaces(const float* x, float* y, int width, int height, int past, void* stream) {
  const cudaArray_t from = volume(x, width, height, 1, cudaArraySurfaceLoadStore);
  const cudaArray_t to = volume(x, width, height, 1, cudaArraySurfaceLoadStore);
  cudaSurfaceObject_t s[2];
  cudaResourceDesc resource{};
  resource.resType = cudaResourceTypeArray;
  resource.res.array.array = from, cudaCreateSurfaceObject(&s[0], &resource);
  resource.res.array.array = to, cudaCreateSurfaceObject(&s[1], &resource);
  HETKERN_LAUNCH(surface_kernel, 1, dim3(width, height), 0, stream, s[0], s[1], width, past);
  cudaMemcpy2DFromArray(y, width * sizeof(float), to, 0, 0, width * sizeof(float), height, cudaMemcpyDeviceToDevice);
  cudaDestroySurfaceObject(s[0]), cudaDestroySurfaceObject(s[1]), cudaFreeArray(from), cudaFreeArray(to);
}
