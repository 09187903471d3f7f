// The samplers of diffusion/samplers: from noise to data along a table of times.
//
// A time is a row {t, alpha, sigma, logSNR} of x_t = alpha x0 + sigma eps. Python computes the rows of each grid, so
// schedules need no second implementation. States are Float32Array, coefficients are double precision.

/** Sum of coefficient times state over pairs (coefficient, state). */
export function combined(...terms) {
  const result = new Float32Array(terms[0][1].length);
  for (let i = 0; i < result.length; i++) {
    let sum = 0;
    for (const [coefficient, state] of terms) sum += coefficient * state[i];
    result[i] = sum;
  }
  return result;
}

/** eps = (x_t - alpha x0) / sigma. */
const epsFrom = (x, x0, { alpha, sigma }) => combined([1 / sigma, x], [-alpha / sigma, x0]);

/** The step in lambda = log_snr / 2. */
const lambdaStep = (t, s) => (s.logSNR - t.logSNR) / 2;

/** DDIM with eta = 0 (Song et al. 2021, arXiv 2010.02502, eq. 12). */
function ddim({ x, x0, t, s }) {
  return combined([s.alpha, x0], [s.sigma, epsFrom(x, x0, t)]);
}

/** DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2); a step far longer than the last is first order. */
function dpmpp2m({ x, x0, t, s, before }) {
  const h = lambdaStep(t, s);
  let ahead = x0; // D at the middle of the step
  if (before && Math.abs(h) <= 2 * Math.abs(lambdaStep(before.t, t))) {
    const slope = h / (2 * lambdaStep(before.t, t));
    ahead = combined([1 + slope, x0], [-slope, before.x0]);
  }
  return combined([s.sigma / t.sigma, x], [-s.alpha * Math.expm1(-h), ahead]);
}

/** Heun's method on the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364, algorithm 1). */
async function heun({ x, x0, t, s, denoise }) {
  const step = s.sigma / s.alpha - t.sigma / t.alpha;
  const eps = epsFrom(x, x0, t);
  const predicted = combined([s.alpha / t.alpha, x], [s.alpha * step, eps]);
  const x0AtS = await denoise(predicted, s);
  const h = lambdaStep(t, s);
  if (h > 1 && Math.exp(h) > 0.02 * (1 + (s.sigma / s.alpha) ** 2)) {
    // Over so long a step the slope bends: the mean of both answers takes the place of the mean of both slopes.
    const half = (-s.alpha * Math.expm1(-h)) / 2;
    return combined([s.sigma / t.sigma, x], [half, x0], [half, x0AtS]);
  }
  const half = (s.alpha * step) / 2;
  return combined([s.alpha / t.alpha, x], [half, eps], [half, epsFrom(predicted, x0AtS, s)]);
}

/** Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, algorithm 2) with the variance beta, or the posterior's. */
const ddpm = (posterior) =>
  function ({ x, x0, t, s, draw }) {
    const ratio = t.alpha / s.alpha;
    const beta = t.sigma ** 2 - (ratio * s.sigma) ** 2;
    const variance = posterior ? (beta * s.sigma ** 2) / t.sigma ** 2 : beta;
    return combined(
      [(ratio * s.sigma ** 2) / t.sigma ** 2, x],
      [(s.alpha * beta) / t.sigma ** 2, x0],
      [Math.sqrt(variance), draw()],
    );
  };

export const SAMPLERS = { ddim, dpmpp_2m: dpmpp2m, heun, ddpm_beta: ddpm(false), ddpm_beta_tilde: ddpm(true) };

/**
 * Walks along the times and yields {t, x, x0} at each; the last step, to t = 0, is the predicted x0 itself.
 * @param denoise (x, time) => x0
 * @param noise (step) => noise like x
 */
export async function* sample(name, denoise, x, times, noise) {
  let before = null;
  for (let i = 0; i + 1 < times.length; i++) {
    const [t, s] = [times[i], times[i + 1]];
    const x0 = await denoise(x, t);
    yield { t, x, x0 };
    const next = s.t === 0 ? x0 : await SAMPLERS[name]({ x, x0, t, s, before, denoise, draw: () => noise(i + 1) });
    before = { t, x0 };
    x = next;
  }
  yield { t: times.at(-1), x, x0: x };
}
