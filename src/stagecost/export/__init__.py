"""Files that run elsewhere: graphs for ONNX Runtime and for torch, whole, or cut where images leave."""
