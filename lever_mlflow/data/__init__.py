"""The data a selector works on: OK-VQA samples, their features, candidate pools, and the VQA accuracy of an answer."""
