"""The Open Inference Protocol V2 over gRPC. It is imported only if `grpc_port` is set: grpcio costs memory."""
