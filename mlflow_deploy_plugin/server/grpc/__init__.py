"""The Open Inference Protocol V2 over gRPC: messages ↔ arrays, methods, and the listener of a worker.

Nothing here but `reserve` and `opener` may be imported where no `grpc_port` is set: grpcio costs memory and start-up.
"""
