// $name, version $version: predict the row in example.json with onnxruntime-node.
//
//   npm install onnxruntime-node
//   node predict.mjs
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import ort from "onnxruntime-node";

const file = (name) => fileURLToPath(new URL("../" + name, import.meta.url));
const session = await ort.InferenceSession.create(file("$graph"));

const arrays = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array,
  uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
};
const tensor = ({ type, data, dims }) => {
  if (type === "string") return new ort.Tensor(type, data, dims);
  const values = data.map(type.endsWith("int64") ? BigInt : Number);  // JSON contains "NaN" as a string.
  return new ort.Tensor(type, arrays[type].from(values), dims);
};
const inputs = JSON.parse(readFileSync(file("example.json"), "utf8"));
const feeds = Object.fromEntries(Object.entries(inputs).map(([name, entry]) => [name, tensor(entry)]));

const outputs = await session.run(feeds, [$output_names]);
const plain = (value) => (typeof value === "bigint" ? Number(value) : value);
for (const [name, output] of Object.entries(outputs)) {
  console.log(JSON.stringify({ [name]: Array.from(output.data, plain), dims: output.dims }));
}
