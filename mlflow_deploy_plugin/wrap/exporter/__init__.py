"""Export a version as files that do not need onnxserve: the graph, a wheel, or a bundle
for offline machines.
"""
