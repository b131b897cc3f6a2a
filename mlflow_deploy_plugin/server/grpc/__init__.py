"""The Open Inference Protocol V2 over gRPC: messages ↔ arrays, methods, and the server of a worker.

Nothing here is imported unless `grpc_port` is set: grpcio costs memory and start-up.
"""
