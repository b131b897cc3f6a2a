// The functions of ONNX Runtime's C API that the operator calls, by their positions in the table
// `OrtApi` of onnxruntime_c_api.h, so that no header of a release is needed. Positions never change
// once a release has them. The library refuses releases that it was not tested with (TESTED).

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace ort {

constexpr uint32_t kApiVersion = 29;

enum Function : size_t {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomain_Add = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kCastTypeInfoToTensorInfo = 55,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kAllocatorFree = 76,
  kGetAllocatorWithDefaultOptions = 78,
  kKernelInfoGetAttribute_float = 85,
  kKernelInfoGetAttribute_int64 = 86,
  kKernelInfoGetAttribute_string = 87,
  kKernelContext_GetInput = 90,
  kKernelContext_GetOutput = 91,
  kReleaseStatus = 93,
  kReleaseValue = 96,
  kReleaseTypeInfo = 98,
  kKernelInfoGetAttributeArray_float = 162,
  kKernelInfoGetAttributeArray_int64 = 163,
  kKernelInfo_GetInputTypeInfo = 234,
  kKernelInfoGetAttribute_tensor = 236,
  kKernelContext_ParallelFor = 274,
  kGetTensorElementTypeAndShapeDataReference = 414,
  kKernelInfoGetAttributeArray_string = 417,
};

enum ElementType : int { kFloat = 1, kDouble = 11 };
enum ErrorCode : int { kNotImplemented = 9 };

struct Status;
struct Value;
struct Info;
struct Context;
struct Options;
struct Domain;
struct Allocator;
struct TypeInfo;
struct TensorInfo;
using Api = void* const*;
struct ApiBase {
  Api (*get)(uint32_t version);
  const char* (*version)();
};

template <Function Name, class Result = Status*, class... Arguments>
Result call(Api api, Arguments... arguments) {
  return reinterpret_cast<Result (*)(Arguments...)>(api[Name])(arguments...);
}

inline Status* failure(Api api, const char* text) {
  return call<kCreateStatus>(api, int(kNotImplemented), text);
}
inline bool holds(Api api, Status* status) {
  if (status) call<kReleaseStatus, void>(api, status);
  return !status;
}
inline void check(Api api, Status* status) {
  if (!holds(api, status)) throw std::runtime_error("ONNX Runtime refuses a call");
}

// The reason why a model or a batch is left to ONNX Runtime's own operator.
[[noreturn]] inline void refuse(const std::string& text) { throw std::invalid_argument(text); }

template <Function Release>
struct Deleter {
  Api api;
  template <class T>
  void operator()(T* owned) const {
    call<Release, void>(api, owned);
  }
};

struct Shape {
  int type;
  const int64_t* sizes;
  size_t rank;
};
inline Shape shape_of(Api api, const Value* value) {
  Shape shape{};
  check(api, call<kGetTensorElementTypeAndShapeDataReference>(api, value, &shape.type,
                                                              &shape.sizes, &shape.rank));
  return shape;
}

inline void* data_of(Api api, const Value* value) {
  void* data = nullptr;
  check(api, call<kGetTensorMutableData>(api, const_cast<Value*>(value), &data));
  return data;
}

// The attributes of a node. ONNX Runtime has not checked them, because an operator of a library has
// no schema. ONNX Runtime reads an attribute of another type as absent or empty, so these are refused.
class Attributes {
 public:
  Attributes(Api api, const Info* info) : api_(api), info_(info) {
    check(api_, call<kGetAllocatorWithDefaultOptions>(api_, &allocator_));
  }

  std::vector<int64_t> integers(const char* name) const {
    return list<kKernelInfoGetAttributeArray_int64, int64_t>(name);
  }
  int64_t integer(const char* name, int64_t otherwise) const {
    int64_t out = 0;
    if (holds(api_, call<kKernelInfoGetAttribute_int64>(api_, info_, name, &out))) return out;
    refuse_if_present(name);
    return otherwise;
  }
  std::string text(const char* name, const char* otherwise) const {
    size_t size = 0;
    if (!holds(api_, call<kKernelInfoGetAttribute_string>(api_, info_, name,
                                                          static_cast<char*>(nullptr), &size))) {
      refuse_if_present(name);
      return otherwise;
    }
    std::vector<char> out(size + 1);
    check(api_, call<kKernelInfoGetAttribute_string>(api_, info_, name, out.data(), &size));
    return out.data();
  }
  std::vector<std::string> texts(const char* name) const {
    char** parts = nullptr;
    size_t size = 0;
    if (!holds(api_, call<kKernelInfoGetAttributeArray_string>(api_, info_, name, allocator_,
                                                               &parts, &size))) {
      refuse_if_present(name);
      return {};
    }
    const auto free_parts = [this, size](char** owned) {
      for (size_t index = 0; index < size; ++index) free(owned[index]);
      free(owned);
    };
    const std::unique_ptr<char*, decltype(free_parts)> owner(parts, free_parts);
    return {parts, parts + size};
  }
  // The numbers of the list `name`, or of the tensor `name`_as_tensor, which has the type T.
  template <class T>
  std::vector<T> numbers(const std::string& name) const {
    const std::vector<float> listed = list<kKernelInfoGetAttributeArray_float, float>(name.c_str());
    const std::string tensor_name = name + "_as_tensor";
    const auto tensor = tensor_of(tensor_name.c_str());
    if (!tensor) {
      refuse_if_present(tensor_name.c_str());
      return {listed.begin(), listed.end()};
    }
    if (!listed.empty()) refuse("it has both " + name + " and " + tensor_name);
    const Shape shape = shape_of(api_, tensor.get());
    if (shape.type != (std::is_same_v<T, float> ? kFloat : kDouble))
      refuse("the type of " + tensor_name);
    if (shape.rank != 1 || shape.sizes[0] < 0) refuse("the shape of " + tensor_name);
    const T* data = static_cast<const T*>(data_of(api_, tensor.get()));
    return {data, data + shape.sizes[0]};
  }

  // The number of columns of the input, or -1 if the model does not declare it.
  int64_t columns() const {
    TypeInfo* type = nullptr;
    if (!holds(api_, call<kKernelInfo_GetInputTypeInfo>(api_, info_, size_t(0), &type))) return -1;
    const std::unique_ptr<TypeInfo, Deleter<kReleaseTypeInfo>> owner(type, {api_});
    const TensorInfo* tensor = nullptr;
    check(api_, call<kCastTypeInfoToTensorInfo>(api_, static_cast<const TypeInfo*>(type), &tensor));
    size_t rank = 0;
    if (!tensor || !holds(api_, call<kGetDimensionsCount>(api_, tensor, &rank)) || rank != 2)
      return -1;
    int64_t sizes[2] = {-1, -1};
    check(api_, call<kGetDimensions>(api_, tensor, &sizes[0], rank));
    return sizes[1];
  }

 private:
  using Tensor = std::unique_ptr<Value, Deleter<kReleaseValue>>;

  template <Function Name, class T>
  std::vector<T> list(const char* name) const {
    size_t size = 0;
    if (!holds(api_, call<Name>(api_, info_, name, static_cast<T*>(nullptr), &size))) {
      refuse_if_present(name);
      return {};
    }
    if (!size) refuse(std::string("the type or the length of ") + name);  // Of another type, it is empty.
    std::vector<T> out(size);
    check(api_, call<Name>(api_, info_, name, out.data(), &size));
    if (size != out.size()) refuse(std::string("the length of ") + name);
    return out;
  }
  Tensor tensor_of(const char* name) const {
    Value* value = nullptr;
    if (!holds(api_, call<kKernelInfoGetAttribute_tensor>(api_, info_, name, allocator_, &value)))
      value = nullptr;
    return Tensor(value, {api_});
  }
  void free(void* memory) const { holds(api_, call<kAllocatorFree>(api_, allocator_, memory)); }

  void refuse_if_present(const char* name) const {
    size_t size = 0;
    float number = 0;
    int64_t integer = 0;
    char** parts = nullptr;
    const bool is_text = holds(api_, call<kKernelInfoGetAttribute_string>(
                                         api_, info_, name, static_cast<char*>(nullptr), &size));
    const bool is_number =
        holds(api_, call<kKernelInfoGetAttribute_float>(api_, info_, name, &number)) ||
        holds(api_, call<kKernelInfoGetAttribute_int64>(api_, info_, name, &integer));
    const bool is_list =
        holds(api_, call<kKernelInfoGetAttributeArray_float>(
                        api_, info_, name, static_cast<float*>(nullptr), &size)) ||
        holds(api_, call<kKernelInfoGetAttributeArray_int64>(
                        api_, info_, name, static_cast<int64_t*>(nullptr), &size));
    const bool is_texts = holds(api_, call<kKernelInfoGetAttributeArray_string>(
                                          api_, info_, name, allocator_, &parts, &size));
    if (is_texts) {
      for (size_t index = 0; index < size; ++index) free(parts[index]);
      free(parts);
    }
    if (is_text || is_number || is_list || is_texts || tensor_of(name))
      refuse(std::string("the type of ") + name);
  }

  Api api_;
  const Info* info_;
  Allocator* allocator_ = nullptr;
};

}  // namespace ort
