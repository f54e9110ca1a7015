"""Starting weights of MobileNetV3 in `models/`, as safetensors; AgriDistill reads them for `--weights leaf`."""
