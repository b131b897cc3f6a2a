// $name, version $version: predict one row with ONNX Runtime's C++ API.
//
//   g++ -std=c++17 -I ONNXRUNTIME/include predict.cpp -L ONNXRUNTIME/lib -lonnxruntime -o predict
//   ./predict ../$graph
//
// ONNXRUNTIME is an unpacked onnxruntime-linux-x64-VERSION.tgz (linux-aarch64, osx-arm64) from https://github.com/microsoft/onnxruntime/releases
#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <iostream>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

struct Inputs {
  std::vector<const char*> names;
  std::vector<Ort::Value> values;
};

template <typename T>
void add_input(Inputs& inputs, const char* name, std::vector<T> values, std::vector<int64_t> shape) {
  Ort::AllocatorWithDefaultOptions allocator;
  inputs.names.push_back(name);
  if constexpr (std::is_same_v<T, std::string>) {
    Ort::Value tensor = Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING);
    std::vector<const char*> texts;
    for (const auto& value : values) texts.push_back(value.c_str());
    tensor.FillStringTensor(texts.data(), texts.size());
    inputs.values.push_back(std::move(tensor));
  } else {
    Ort::Value tensor = Ort::Value::CreateTensor<T>(allocator, shape.data(), shape.size());
    std::copy(values.begin(), values.end(), tensor.template GetTensorMutableData<T>());
    inputs.values.push_back(std::move(tensor));
  }
}

template <typename T>
void print(const Ort::Value& value, size_t count) {
  const T* data = value.GetTensorData<T>();
  for (size_t i = 0; i < count; ++i) std::cout << " " << +data[i];
}

int main(int argc, char** argv) {
  Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "predict");
  Ort::Session session(environment, argc > 1 ? argv[1] : "$graph", Ort::SessionOptions{nullptr});

  Inputs inputs;
$inputs

  const std::vector<const char*> output_names{$output_names};
  auto outputs = session.Run(Ort::RunOptions{nullptr}, inputs.names.data(), inputs.values.data(), inputs.values.size(),
                             output_names.data(), output_names.size());
  std::cout.precision(9);
  for (size_t i = 0; i < outputs.size(); ++i) {
    std::cout << output_names[i] << ":";
    if (!outputs[i].IsTensor()) {
      std::cout << " not a tensor\n";
      continue;
    }
    const auto information = outputs[i].GetTensorTypeAndShapeInfo();
    const size_t count = information.GetElementCount();
    switch (information.GetElementType()) {
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: print<float>(outputs[i], count); break;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: print<double>(outputs[i], count); break;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: print<int32_t>(outputs[i], count); break;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: print<int64_t>(outputs[i], count); break;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL: print<bool>(outputs[i], count); break;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING:
        for (size_t j = 0; j < count; ++j) {
          std::string text(outputs[i].GetStringTensorElementLength(j), ' ');
          outputs[i].GetStringTensorElement(text.size(), j, text.data());
          std::cout << " " << text;
        }
        break;
      default: std::cout << " of a type that is not printed here";
    }
    std::cout << "\n";
  }
}
