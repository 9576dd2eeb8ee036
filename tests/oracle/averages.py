"""Prints what torch's moving average makes of a weight, for the test in crates/client/src/tuning/average.rs."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

VALUES = [1.0, 0.5, -0.25, 2.0, 2.5, -1.0]

for decay in (0.9, 0.3):
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(VALUES[0])
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    seen = []
    for value in VALUES:
        with torch.no_grad():
            model.weight.fill_(value)
        averaged.update_parameters(model)
        seen.append(averaged.module.weight.item())
    print(decay, seen)
