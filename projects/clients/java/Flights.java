import com.fasterxml.jackson.databind.ObjectMapper;
import com.google.protobuf.ByteString;
import inference.GRPCInferenceServiceGrpc;
import inference.InferTensorContents;
import inference.ModelInferRequest;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.api.PredictionsApi;
import org.openapitools.client.model.FlightsColumnName;
import org.openapitools.client.model.FlightsDataframeRecords;
import org.openapitools.client.model.FlightsDataframeSplit;
import org.openapitools.client.model.FlightsInvocations;
import org.openapitools.client.model.FlightsRecord;
import org.openapitools.client.model.FlightsSplit;

/** Asks the endpoint `flights` over REST and gRPC. ../README.md describes the commands and the settings. */
public class Flights {
    private static final String KEY = System.getenv("KEY");

    public static void main(String[] arguments) throws Exception {
        askRest(System.getenv("URL"));
        askGrpc(System.getenv("GRPC"));
    }

    private static void askRest(String url) throws Exception {
        var client = new ApiClient(); // A client keeps connections open: create it once, and share it between threads.
        client.updateBaseUri(url);
        client.setReadTimeout(Duration.ofSeconds(5));
        client.setRequestInterceptor(request -> request.header("Authorization", "Bearer " + KEY));
        var predictions = new PredictionsApi(client);

        var records = new FlightsDataframeRecords()
            .addDataframeRecordsItem(new FlightsRecord().carrier("UA").distance(1400.0).hour(22L))
            .addDataframeRecordsItem(new FlightsRecord().carrier("AA").distance(300.0).hour(9L));
        var late = retried(() ->
            predictions.endpointsFlightsInvocationsWithHttpInfo(new FlightsInvocations(records), null, null));
        var version = late.getHeaders().get("x-model-version").get(0);
        System.out.println("REST: " + late.getData().getPredictions() + " from version " + version);

        var split = new FlightsSplit()
            .columns(List.of(new FlightsColumnName("carrier"), new FlightsColumnName("distance")))
            .addDataItem(List.of("UA", 1400));
        try {
            var body = new FlightsInvocations(new FlightsDataframeSplit().dataframeSplit(split));
            predictions.endpointsFlightsInvocations(body, null, null);
        } catch (ApiException error) {
            var message = new ObjectMapper().readTree(error.getResponseBody()).get("message").asText();
            System.out.println("REST error: " + error.getCode() + " " + message);
        }
    }

    private interface Call<T> {
        T run() throws ApiException;
    }

    /** Repeats a call after Retry-After if the server is over a limit (429) or loads its model (503). */
    private static <T> T retried(Call<T> call) throws ApiException, InterruptedException {
        for (int tries = 1; ; tries++) {
            try {
                return call.run();
            } catch (ApiException error) {
                if (tries == 4 || (error.getCode() != 429 && error.getCode() != 503)) throw error;
                Thread.sleep(1000 * error.getResponseHeaders().firstValueAsLong("Retry-After").orElse(1));
            }
        }
    }

    private static final Map<String, ?> RETRIES = Map.of("methodConfig", List.of(Map.of(
        "name", List.of(Map.of("service", "inference.GRPCInferenceService")),
        "timeout", "5s",
        "retryPolicy", Map.of("maxAttempts", 4.0, "initialBackoff", "0.2s", "maxBackoff", "2s", "backoffMultiplier", 2.0,
            "retryableStatusCodes", List.of("UNAVAILABLE", "RESOURCE_EXHAUSTED")))));

    private static void askGrpc(String address) throws Exception {
        ManagedChannel channel = ManagedChannelBuilder.forTarget(address)
            .usePlaintext().defaultServiceConfig(RETRIES).enableRetry().build();
        var metadata = new Metadata();
        metadata.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + KEY);
        var service = GRPCInferenceServiceGrpc.newBlockingStub(channel)
            .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata));

        var request = ModelInferRequest.newBuilder().setModelName("flights");
        request.addInputsBuilder().setName("carrier").setDatatype("BYTES").addShape(2).setContents(
            InferTensorContents.newBuilder()
                .addBytesContents(ByteString.copyFromUtf8("UA")).addBytesContents(ByteString.copyFromUtf8("AA")));
        request.addInputsBuilder().setName("distance").setDatatype("FP64").addShape(2).setContents(
            InferTensorContents.newBuilder().addFp64Contents(1400).addFp64Contents(300));
        request.addInputsBuilder().setName("hour").setDatatype("INT64").addShape(2).setContents(
            InferTensorContents.newBuilder().addInt64Contents(22).addInt64Contents(9));
        request.addOutputsBuilder().setName("probabilities");
        var answer = service.modelInfer(request.build());
        var values = answer.getOutputs(0).getContents().getFp32ContentsList();
        System.out.println("gRPC: " + values + " from version " + answer.getModelVersion());

        try {
            service.modelInfer(request.removeInputs(2).build());
        } catch (StatusRuntimeException error) {
            System.out.println("gRPC error: " + error.getStatus().getCode() + " " + error.getStatus().getDescription());
        }
        channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    }
}
