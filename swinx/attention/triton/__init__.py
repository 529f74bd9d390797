"""The Triton kernels: `operator` is the way to them.

`support`, `records`, `first_use` and `trial` say whether they can be had; `launch`, `parameters` and `table` start
them; `forward`, `backward`, `backward_tiled`, `places` and `scores` run on the GPU. `launch` and what runs on the GPU
need Triton, and are imported when a kernel starts; the others need torch alone.
"""
