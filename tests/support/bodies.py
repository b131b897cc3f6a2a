"""Parts of request bodies: tensors of V2, and Arrow tables."""

import pyarrow as pa


def v2_tensor(name, datatype, data, shape=None):
    """Return a tensor of a V2 request; without a shape, it is a vector."""
    return {
        "name": name,
        "shape": [len(data)] if shape is None else shape,
        "datatype": datatype,
        "data": data,
    }


def arrow_stream(table, compression=None):
    """Return the table in Arrow's stream format."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def arrow_file(table):
    """Return the table in Arrow's file format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
