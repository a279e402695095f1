"""The HDF5 trace: schema, writer, reader, recovery."""
