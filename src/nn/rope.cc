#include "nn/rope.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <string>

#include "base/check.h"
#include "tokenmill/error.h"

namespace tokenmill {

namespace {

constexpr int64_t kMaxRotaryDim = 256;

// base^(2i / dim) with the exponent and the power rounded to fp32.
float power_of_base(double base, int64_t i, int64_t dim) {
  const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
  return static_cast<float>(std::pow(base, static_cast<double>(exponent)));
}

// Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between blended.
void scale_llama3(const RopeConfig& config, int64_t original, std::span<float> inv_freq) {
  const double low_wavelength = static_cast<double>(original) / config.low_freq_factor;
  const double high_wavelength = static_cast<double>(original) / config.high_freq_factor;
  for (float& f : inv_freq) {
    const double wavelength = 2 * std::numbers::pi / f;
    if (wavelength < high_wavelength) continue;
    if (wavelength > low_wavelength) {
      f = static_cast<float>(f / config.factor);
      continue;
    }
    const double smooth = (static_cast<double>(original) / wavelength - config.low_freq_factor) /
                          (config.high_freq_factor - config.low_freq_factor);
    f = static_cast<float>((1 - smooth) * f / config.factor + smooth * f);
  }
}

// YaRN (arXiv:2309.00071): dimensions that turn less than beta_slow times over the original context are interpolated,
// those that turn more than beta_fast times are kept, a linear ramp between.
void fill_yarn(const RopeConfig& config, int64_t dim, int64_t original, std::span<float> inv_freq) {
  const auto correction_dim = [&](double rotations) {
    return static_cast<double>(dim) * std::log(static_cast<double>(original) / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(config.theta));
  };
  double low = correction_dim(config.beta_fast), high = correction_dim(config.beta_slow);
  if (config.yarn_truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const float power = power_of_base(config.theta, static_cast<int64_t>(i), dim);
    const float kept = 1.0f / power, interpolated = 1.0f / (static_cast<float>(config.factor) * power);
    const float ramp = static_cast<float>(std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0));
    inv_freq[i] = interpolated * ramp + kept * (1 - ramp);
  }
}

double yarn_mscale(double factor, double mscale) { return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

double yarn_attention_factor(const RopeConfig& config) {
  if (config.attention_factor) return *config.attention_factor;
  if (config.mscale.value_or(0) != 0 && config.mscale_all_dim.value_or(0) != 0) {
    return yarn_mscale(config.factor, *config.mscale) / yarn_mscale(config.factor, *config.mscale_all_dim);
  }
  return yarn_mscale(config.factor, 1);
}

// What makes frequencies that are not finite and positive.
void check_rope(const RopeConfig& config, int64_t rotary_dim, int64_t original) {
  const auto fail = [](const std::string& rule, double value) {
    throw Error(ErrorKind::kValue, "The model's rope " + rule + ", got " + std::to_string(value) + ".");
  };
  if (rotary_dim < 2 || rotary_dim % 2 != 0 || rotary_dim > kMaxRotaryDim) {
    fail("dimension must be even, in [2, 256]", static_cast<double>(rotary_dim));
  }
  if (!std::isfinite(config.theta) || config.theta <= 1) fail("theta must be greater than 1", config.theta);
  if (config.scaling == RopeScaling::kNone) return;
  if (!std::isfinite(config.factor) || config.factor <= 0) fail("scaling factor must be positive", config.factor);
  if (config.scaling != RopeScaling::kLinear && original < 1) {
    fail("scaling's original_max_position_embeddings must be positive", static_cast<double>(original));
  }
  if (config.scaling == RopeScaling::kDynamic && rotary_dim < 4) {
    fail("dimension must be at least 4 for dynamic scaling", static_cast<double>(rotary_dim));
  }
  if (config.scaling == RopeScaling::kDynamic && config.factor < 1) {
    fail("scaling factor must be at least 1 for dynamic scaling", config.factor);
  }
  if (config.scaling == RopeScaling::kLlama3 && config.high_freq_factor <= config.low_freq_factor) {
    fail("high_freq_factor must be greater than low_freq_factor", config.high_freq_factor);
  }
}

}  // namespace

Rope::Rope(const RopeConfig& config, int64_t rotary_dim, int64_t max_position)
    : config_(config),
      rotary_dim_(rotary_dim),
      original_max_position_(config.original_max_position > 0 ? config.original_max_position : max_position) {
  check_rope(config_, rotary_dim_, original_max_position_);
  if (!config_.frequency_divisors.empty() && static_cast<int64_t>(config_.frequency_divisors.size()) < rotary_dim / 2) {
    throw Error(ErrorKind::kValue, "rope_freqs.weight holds " + std::to_string(config_.frequency_divisors.size()) +
                                       " values; the model's rotary dimension needs " + std::to_string(rotary_dim / 2) +
                                       ".");
  }
  inv_freq_.resize(static_cast<size_t>(rotary_dim / 2));
  inverse_frequencies_at(0, inv_freq_);
  if (config_.scaling == RopeScaling::kYarn) attention_factor_ = static_cast<float>(yarn_attention_factor(config_));
}

void Rope::inverse_frequencies_at(int64_t position, std::span<float> out) const {
  TM_CHECK(static_cast<int64_t>(out.size()) == rotary_dim_ / 2);
  if (config_.scaling == RopeScaling::kYarn) {
    fill_yarn(config_, rotary_dim_, original_max_position_, out);
  } else {
    double base = config_.theta;
    if (config_.scaling == RopeScaling::kDynamic && position >= original_max_position_) {
      const double stretch = static_cast<double>(position + 1) / static_cast<double>(original_max_position_);
      const double dim = static_cast<double>(rotary_dim_);
      base *= std::pow(config_.factor * stretch - (config_.factor - 1), dim / (dim - 2));
    }
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = 1.0f / power_of_base(base, static_cast<int64_t>(i), rotary_dim_);
      if (config_.scaling == RopeScaling::kLinear) out[i] /= static_cast<float>(config_.factor);
    }
    if (config_.scaling == RopeScaling::kLlama3) scale_llama3(config_, original_max_position_, out);
  }
  if (!config_.frequency_divisors.empty()) {
    for (size_t i = 0; i < out.size(); ++i) out[i] /= config_.frequency_divisors[i];
  }
}

RopeTable Rope::take_table(Workspace& workspace, int64_t tokens) const {
  return {.cos = workspace.take(tokens, rotary_dim_ / 2), .sin = workspace.take(tokens, rotary_dim_ / 2)};
}

void Rope::fill_table(ForwardContext& context, const RopeTable& table) const {
  const std::span<const int32_t> positions = context.batch.positions;
  context.backend.rope_table(positions, inv_freq_, attention_factor_, table);
  if (config_.scaling != RopeScaling::kDynamic) return;
  std::array<float, kMaxRotaryDim / 2> scaled;
  const std::span<float> own(scaled.data(), static_cast<size_t>(rotary_dim_ / 2));
  for (size_t i = 0; i < positions.size(); ++i) {
    if (positions[i] < original_max_position_) continue;
    inverse_frequencies_at(positions[i], own);
    const int64_t row = static_cast<int64_t>(i);
    context.backend.rope_table(positions.subspan(i, 1), own, attention_factor_,
                               {table.cos.slice_rows(row, 1), table.sin.slice_rows(row, 1)});
  }
}

}  // namespace tokenmill
