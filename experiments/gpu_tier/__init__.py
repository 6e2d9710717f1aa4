"""The paper's table and the targets at 54 blocks, on one GPU, with a trainer of its own.

Hardware: one GPU (recorded: NVIDIA H100 80GB HBM3, NVIDIA H200), bf16 autocast, channels last; without
one the same code runs, slowly, on a CPU. Data (`images`): all training images of MNIST,
CIFAR-10 and CIFAR-100 but a fixed tenth for validation; crops after padding by 4 (MNIST 2) and, CIFAR
alone, mirror images.
What is trained: `plan`, one recipe for all arms; SGD with Nesterov momentum, linear warm-up and
half a cosine, lambda on the residual branches alone. Seeds 0, 1, 2; the pilot has others.

Speed: a whole step (crops, forward, backward, optimiser) is one CUDA graph; several jobs replay theirs
on streams of their own. Blocks are compiled where that is measured to pay. Where capture fails, the job
goes on without a graph.

    python -m experiments.gpu_tier decode --parquet DATA/cifar10 --file IMAGES/cifar10.safetensors
    python -m experiments.gpu_tier train pilot cifar10 mnist … --images IMAGES --out OUT
    python -m experiments.gpu_speed --out OUT
    python -m experiments.gpu_tier records --lines OUT/gpu-tier.jsonl --results results

`IMAGES/pilot.safetensors` is decoded from the first three of CIFAR-10's five training files. `train`
writes a line for each finished job at once. Test images are read once a job, at its end.
"""
