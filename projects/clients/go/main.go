// Command flights asks the endpoint `flights` over REST and gRPC. ../README.md describes the commands and
// the settings.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"flights/inference"
	"flights/openapi"

	"github.com/hashicorp/go-retryablehttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func main() {
	askREST(os.Getenv("URL"), os.Getenv("KEY"))
	askGRPC(os.Getenv("GRPC"), os.Getenv("KEY"))
}

// newHTTPClient returns a client that keeps connections open. It sends a request again after Retry-After if the server
// is over a limit (429) or loads its model (503).
func newHTTPClient() *http.Client {
	client := retryablehttp.NewClient()
	client.Logger = nil
	client.HTTPClient.Timeout = 5 * time.Second
	client.ErrorHandler = retryablehttp.PassthroughErrorHandler
	client.CheckRetry = func(_ context.Context, response *http.Response, err error) (bool, error) {
		return err == nil && (response.StatusCode == 429 || response.StatusCode == 503), err
	}
	return client.StandardClient()
}

func askREST(url, key string) {
	settings := openapi.NewConfiguration()
	settings.Servers = openapi.ServerConfigurations{{URL: url}}
	settings.HTTPClient = newHTTPClient()
	predictions := openapi.NewAPIClient(settings).PredictionsAPI
	ctx := context.WithValue(context.Background(), openapi.ContextAccessToken, key)

	first, second := openapi.NewFlightsRecord("UA", 22), openapi.NewFlightsRecord("AA", 9)
	first.SetDistance(1400)
	second.SetDistance(300)
	records := openapi.NewFlightsDataframeRecords([]openapi.FlightsRecord{*first, *second})
	body := openapi.FlightsDataframeRecordsAsFlightsInvocations(records)
	late, response, err := predictions.EndpointsFlightsInvocations(ctx).FlightsInvocations(body).Execute()
	if err != nil {
		log.Fatal(describe(err))
	}
	version := response.Header.Get("X-Model-Version")
	fmt.Println("REST:", late.Predictions, "from version", version)

	split := openapi.NewFlightsSplit([]interface{}{[]interface{}{"UA", 1400}})
	split.Columns = []openapi.FlightsColumnName{
		{String: openapi.PtrString("carrier")}, {String: openapi.PtrString("distance")}}
	body = openapi.FlightsDataframeSplitAsFlightsInvocations(openapi.NewFlightsDataframeSplit(*split))
	_, _, err = predictions.EndpointsFlightsInvocations(ctx).FlightsInvocations(body).Execute()
	fmt.Println("REST error:", describe(err))
}

// describe returns the status and the server's message, if the server refused the request.
func describe(err error) string {
	var failure *openapi.GenericOpenAPIError
	if errors.As(err, &failure) {
		if answer, ok := failure.Model().(openapi.ErrorMlflow); ok {
			return err.Error() + ": " + answer.Message
		}
	}
	return err.Error()
}

const retries = `{"methodConfig": [{
	"name": [{"service": "inference.GRPCInferenceService"}],
	"timeout": "5s",
	"retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.2s", "maxBackoff": "2s", "backoffMultiplier": 2,
		"retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}}]}`

func askGRPC(address, key string) {
	connection, err := grpc.Dial(address, grpc.WithInsecure(), grpc.WithDefaultServiceConfig(retries))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	service := inference.NewGRPCInferenceServiceClient(connection)
	ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+key)

	request := &inference.ModelInferRequest{
		ModelName: "flights",
		Inputs: []*inference.ModelInferRequest_InferInputTensor{
			{Name: "carrier", Datatype: "BYTES", Shape: []int64{2}, Contents: &inference.InferTensorContents{
				BytesContents: [][]byte{[]byte("UA"), []byte("AA")}}},
			{Name: "distance", Datatype: "FP64", Shape: []int64{2}, Contents: &inference.InferTensorContents{
				Fp64Contents: []float64{1400, 300}}},
			{Name: "hour", Datatype: "INT64", Shape: []int64{2}, Contents: &inference.InferTensorContents{
				Int64Contents: []int64{22, 9}}},
		},
		Outputs: []*inference.ModelInferRequest_InferRequestedOutputTensor{{Name: "probabilities"}},
	}
	answer, err := service.ModelInfer(ctx, request)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("gRPC:", answer.Outputs[0].Contents.Fp32Contents, "from version", answer.ModelVersion)

	request.Inputs = request.Inputs[:2]
	_, err = service.ModelInfer(ctx, request)
	fmt.Println("gRPC error:", status.Code(err), status.Convert(err).Message())
}
