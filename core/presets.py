"""Ready federations: a model, its diffusion and training, for data of a known kind.

A preset lies under the keys of the federation's own file, which win. Parameter counts are those of the network built
and are checked by a test.
"""

from __future__ import annotations

from typing import Any


def _digits(size: int, channels: list[int]) -> dict[str, Any]:
    """A class-conditional network for scikit-learn's handwritten digits, v-prediction."""
    return {
        "model": {
            "sample_size": size,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": channels,
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "add_attention": False,
            "num_class_embeds": 10,
        },
        "data": {"classes": [str(digit) for digit in range(10)]},
        "diffusion": {"schedule": "cosine", "timesteps": 1000, "prediction": "v"},
    }


def _tun(size: int, channels: int, classes: list[str], batch: int) -> dict[str, Any]:
    """The setting of Tun et al. (ATC 2023), who tell the network's size, 23.2 M, not its shape, nor the schedule."""
    return {
        "model": {
            "sample_size": size,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": [64, 128, 224, 256],
            "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"],
            "layers_per_block": 2,
            "attention_head_dim": 32,
            "num_class_embeds": len(classes),
        },
        "data": {"classes": classes},
        "diffusion": {"schedule": "cosine", "timesteps": 300, "prediction": "v"},
        "training": {"epochs": 5, "batch_size": batch, "learning_rate": 2e-4},
    }


_CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

ECONOMIES: dict[str, dict[str, Any]] = {
    # No worse than FULL in float32 with one local epoch a round (the literature's setting), at 50 times fewer bytes.
    "careful": {
        "initial": "seed",
        "codec": {"up": "int2", "down": "int2"},
        "outer": {"optimizer": "nesterov", "learning_rate": 0.7, "momentum": 0.8},
        "training": {"epochs": 4},
    },
    # Within 3 % of it, at over 100 times fewer. With so few rounds a high momentum would overshoot at the end.
    "thrifty": {
        "initial": "seed",
        "codec": {"up": "int2", "down": "int2"},
        "outer": {"optimizer": "nesterov", "learning_rate": 0.8, "momentum": 0.5},
        "training": {"epochs": 10},
    },
}
"""How a federation saves bytes; goes on top of a model's preset: ``preset = ["ct-64", "thrifty"]``."""

PRESETS: dict[str, dict[str, Any]] = {
    # scikit-learn's handwritten digits as they are, and a network of 160 k parameters: for measurements in minutes.
    "digits-8": {
        **_digits(8, [16, 32]),
        "training": {"epochs": 4, "batch_size": 32, "learning_rate": 4e-3},
    },
    # scikit-learn's 8x8 handwritten digits enlarged to 16x16; the demo.
    "digits-16": {
        **_digits(16, [32, 64]),
        "training": {"epochs": 2, "batch_size": 64, "learning_rate": 2e-3},
    },
    # Fashion-MNIST and the like; 3.1 M parameters, as FedDiffuse's 3.0 M (arXiv 2406.12575).
    "gray-28": {
        "model": {
            "sample_size": 28,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": [40, 80, 128],
            "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": 32,
        },
        "diffusion": {"schedule": "linear", "timesteps": 1000, "loss": "huber"},
        "training": {"epochs": 5, "batch_size": 128, "learning_rate": 1e-4},
    },
    # The DDPM network of Ho et al. 2020 for CIFAR-10, as in google/ddpm-cifar10-32: 35,746,307 parameters.
    "cifar-32": {
        "model": {
            "sample_size": 32,
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": [128, 256, 256, 256],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 2,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
            "attention_head_dim": None,
        },
        "diffusion": {"schedule": "linear", "timesteps": 1000},
        "training": {"epochs": 1, "batch_size": 128, "learning_rate": 2e-4, "horizontal_flip": True},
    },
    # Tun et al.'s CIFAR-10 and SARS-CoV-2 CT, at their own settings; 23.2 M parameters (bench/sweeps/tun-*.toml).
    "tun-32": _tun(32, 3, _CIFAR, 512),
    "tun-64": _tun(64, 1, ["covid", "non-covid"], 128),
    # Jin's MNIST, enlarged to 32x32: 64 channels times 1, 2, 2, 4, attention on the last level (bench/sweeps/jin.toml).
    "jin-32": {
        "model": {
            "sample_size": 32,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": [64, 128, 128, 256],
            "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"],
            "layers_per_block": 2,
            "attention_head_dim": 32,
        },
        "diffusion": {"schedule": "linear", "timesteps": 1000},
        "training": {"epochs": 1, "batch_size": 64, "learning_rate": 2e-5},
    },
    # CT slices (ct-64) for a CPU: 1.1 M parameters; 30,000 images seen already give slices that look like slices.
    "ct-64-small": {
        "model": {
            "sample_size": 64,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": [16, 32, 64, 64],
            "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": 16,
            "num_class_embeds": 2,
        },
        "data": {"classes": ["covid", "non-covid"]},
        "diffusion": {"schedule": "cosine", "timesteps": 1000, "prediction": "v"},
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "precision": "bf16"},
    },
    # CIFAR-10 for a CPU: 1.1 M parameters.
    "cifar-32-small": {
        "model": {
            "sample_size": 32,
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": [32, 64, 64],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": 16,
            "num_class_embeds": 10,
        },
        "data": {"classes": _CIFAR},
        "diffusion": {"schedule": "cosine", "timesteps": 1000, "prediction": "v"},
        "training": {
            "epochs": 1,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "precision": "bf16",
            "horizontal_flip": True,
        },
    },
    # Phoenix's baseline for CIFAR-10: generator 3,448,579, discriminator 2,637,441; theirs 3.5 M and 2.7 M.
    "dcgan-32": {
        "model": {
            "kind": "dcgan",
            "sample_size": 32,
            "in_channels": 3,
            "out_channels": 3,
            "channels": [512, 256, 128],
            "latent": 100,
        },
        "training": {"epochs": 1, "batch_size": 128, "learning_rate": 2e-4},
    },
    # The same on scikit-learn's handwritten digits as they are, in a minute or two on a CPU.
    "dcgan-8": {
        "model": {
            "kind": "dcgan",
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "channels": [64, 32],
            "latent": 32,
        },
        "training": {"epochs": 4, "batch_size": 32, "learning_rate": 2e-3},
    },
    # CT slices at 64x64, two classes, v-prediction (Tun et al., ATC 2023).
    "ct-64": {
        "model": {
            "sample_size": 64,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": [64, 128, 256, 256],
            "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
            "layers_per_block": 2,
            "attention_head_dim": 32,
            "num_class_embeds": 2,
        },
        "data": {"classes": ["covid", "non-covid"]},
        "diffusion": {"schedule": "cosine", "timesteps": 1000, "prediction": "v"},
        "training": {"epochs": 5, "batch_size": 64, "learning_rate": 2e-4},
    },
}
