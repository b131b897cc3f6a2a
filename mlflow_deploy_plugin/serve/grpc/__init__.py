"""The Open Inference Protocol V2 over gRPC, imported only if `grpc_port` is set,
because grpcio takes much memory.
"""
