// Asks the endpoint `flights` over REST and gRPC. ../README.md describes the commands and the settings.
import { setTimeout } from "node:timers/promises";
import { promisify } from "node:util";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import createClient from "openapi-fetch";

const { URL = "http://localhost:8123", GRPC = "localhost:8124", KEY = "" } = process.env;

/**
 * Sends a request, and sends it again after Retry-After if the server is over a limit (429) or loads its model (503).
 * @param {Request} request
 */
async function fetchWithRetries(request, tries = 4) {
  for (;;) {
    const response = await fetch(request.clone(), { signal: AbortSignal.timeout(5_000) });
    if (![429, 503].includes(response.status) || --tries === 0) return response;
    await setTimeout(1_000 * Number(response.headers.get("Retry-After") ?? 1));
  }
}

/** @type {import("openapi-fetch").Client<import("./openapi.js").paths, "application/json">} */
const rest = createClient({ baseUrl: URL, headers: { Authorization: `Bearer ${KEY}` }, fetch: fetchWithRetries });
const records = [
  { carrier: "UA", distance: 1400, hour: 22 },
  { carrier: "AA", distance: 300, hour: 9 },
];
const late = await rest.POST("/endpoints/flights/invocations", { body: { dataframe_records: records } });
if (late.error) throw new Error(late.error.message);
console.log("REST:", ...late.data.predictions, "from version", late.response.headers.get("X-Model-Version"));

const split = { columns: ["carrier", "distance"], data: [["UA", 1400]] };
const refused = await rest.POST("/endpoints/flights/invocations", { body: { dataframe_split: split } });
console.log("REST error:", refused.response.status, refused.error?.message);

const retries = {
  methodConfig: [
    {
      name: [{ service: "inference.GRPCInferenceService" }],
      timeout: "5s",
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.2s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
      },
    },
  ],
};
/** @type {any} */
const { inference } = grpc.loadPackageDefinition(protoLoader.loadSync("inference.proto", { keepCase: true }));
const service = new inference.GRPCInferenceService(GRPC, grpc.credentials.createInsecure(), {
  "grpc.service_config": JSON.stringify(retries),
});
const infer = promisify(service.ModelInfer.bind(service));
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${KEY}`);
const request = {
  model_name: "flights",
  inputs: [
    { name: "carrier", datatype: "BYTES", shape: [2], contents: { bytes_contents: [Buffer.from("UA"), Buffer.from("AA")] } },
    { name: "distance", datatype: "FP64", shape: [2], contents: { fp64_contents: [1400, 300] } },
    { name: "hour", datatype: "INT64", shape: [2], contents: { int64_contents: [22, 9] } },
  ],
  outputs: [{ name: "probabilities" }],
};
const answer = await infer(request, metadata);
console.log("gRPC:", ...answer.outputs[0].contents.fp32_contents, "from version", answer.model_version);

try {
  await infer({ ...request, inputs: request.inputs.slice(0, 2) }, metadata);
} catch (error) {
  const { code, details } = /** @type {import("@grpc/grpc-js").ServiceError} */ (error);
  console.log("gRPC error:", grpc.status[code], details);
}
service.close();
