"""The Open Inference Protocol V2 over gRPC: messages ↔ arrays, methods, and the listener of a worker.

Where no `grpc_port` is set nothing but `port.py` is imported: grpcio costs memory and start-up.
"""
