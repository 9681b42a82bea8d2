from __future__ import annotations

import torch
from torch import nn

from encodec_rt.training.discriminator import DiscriminatorConfig, MultiScaleStftDiscriminator
from encodec_rt.training.losses import discriminator_hinge

SMALL = DiscriminatorConfig(windows=(512, 128), filters=4)


def small() -> MultiScaleStftDiscriminator:
    torch.manual_seed(0)
    return MultiScaleStftDiscriminator(SMALL)


def test_the_default_has_the_papers_windows_and_layers() -> None:
    network = MultiScaleStftDiscriminator(DiscriminatorConfig())
    assert [scale.size for scale in network.scales] == [2048, 1024, 512, 256, 128]
    layers = [each for each in network.scales[0].modules() if isinstance(each, nn.Conv2d)][:-1]
    shapes = [tuple(layer.weight.shape) for layer in layers]
    assert shapes == [(32, 2, 3, 9)] + [(32, 32, 3, 9)] * 3 + [(32, 32, 3, 3)]
    assert [layer.dilation for layer in layers][1:4] == [(1, 1), (2, 1), (4, 1)]
    assert [layer.stride for layer in layers][1:4] == [(1, 2)] * 3


def test_there_is_one_judgement_per_window_and_five_layers_of_features() -> None:
    logits, features = small()(torch.randn(3, 1, 2_400))
    assert len(logits) == len(features) == 2
    assert all(len(layers) == 5 for layers in features)
    # 512 / 2 + 1 = 257 bins, halved three times; 2400 samples in hops of 128.
    assert tuple(logits[0].shape) == (3, 1, 19, 33)


def test_the_sign_of_the_waveform_is_heard() -> None:
    audio = torch.randn(1, 1, 2_400)
    network = small()
    assert not torch.allclose(network(audio)[0][0], network(-audio)[0][0], atol=1e-4)


def test_a_few_steps_learn_to_tell_noise_from_a_tone() -> None:
    network = small()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    time = torch.arange(2_400) / 24_000
    values = []
    for _ in range(25):
        tone = torch.sin(2 * torch.pi * (440 * time + torch.rand(4, 1, 1)))
        loss = discriminator_hinge(network(tone)[0], network(torch.randn(4, 1, 2_400))[0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.5 * values[0]
