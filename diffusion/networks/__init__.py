"""Networks: plain torch modules, `network(x, c_noise, cond) -> tensor shaped like x`, that know nothing of
diffusion."""
