#include "checkpoint/rope_json.h"

#include <string>

#include "checkpoint/config_limits.h"

namespace tokenmill {

namespace {

constexpr double kLocalTheta = 10000;  // Gemma 3's window layers

RopeScaling scaling_kind(const JsonObject& rope) {
  const char* key = rope.find("rope_type") != nullptr ? "rope_type" : "type";
  const std::string name = rope.text(key).value_or("default");
  if (name == "default") return RopeScaling::kNone;
  if (name == "linear") return RopeScaling::kLinear;
  if (name == "dynamic") return RopeScaling::kDynamic;
  if (name == "llama3") return RopeScaling::kLlama3;
  if (name == "yarn") return RopeScaling::kYarn;
  rope.unsupported(key, "rope scaling must be one of default, linear, dynamic, llama3, yarn");
}

void read_llama3(const JsonObject& rope, RopeConfig& out) {
  out.low_freq_factor = rope.number_or("low_freq_factor", 1e-3, 1e6, 1);
  out.high_freq_factor = rope.number_or("high_freq_factor", 1e-3, 1e6, 4);
  if (out.high_freq_factor <= out.low_freq_factor) rope.fail("high_freq_factor", "must be above low_freq_factor");
  if (out.original_max_position == 0) rope.required_integer("original_max_position_embeddings", 1, kMaxPosition);
}

void read_yarn(const JsonObject& rope, RopeConfig& out) {
  out.beta_fast = rope.number_or("beta_fast", 1e-3, 1e6, 32);
  out.beta_slow = rope.number_or("beta_slow", 1e-3, 1e6, 1);
  if (out.beta_fast < out.beta_slow) rope.fail("beta_fast", "must not be below beta_slow");
  out.attention_factor = rope.number("attention_factor", 1e-6, 1e6);
  out.mscale = rope.number("mscale", 0, 1e6);
  out.mscale_all_dim = rope.number("mscale_all_dim", 0, 1e6);
  out.yarn_truncate = rope.boolean_or("truncate", true);
}

// One set of rope settings: the object of rope_parameters or rope_scaling.
RopeConfig read_rope_object(const JsonObject& rope, double theta, const ModelConfig& model) {
  RopeConfig out;
  out.theta = rope.number_or("rope_theta", kMinTheta, kMaxTheta, theta);
  out.scaling = scaling_kind(rope);
  if (rope.find("mrope_section") != nullptr) rope.unsupported("mrope_section", "multimodal rope is not supported");
  if (rope.number_or("partial_rotary_factor", 0, 1, 1) != 1) {
    rope.unsupported("partial_rotary_factor", "rotating a part of the head is not supported for this architecture");
  }
  if (out.scaling == RopeScaling::kNone) return out;
  out.original_max_position = rope.integer_or("original_max_position_embeddings", 1, kMaxPosition, 0);
  if (const auto factor = rope.number("factor", 1, kMaxRopeFactor)) {
    out.factor = *factor;
  } else if (out.scaling == RopeScaling::kYarn && out.original_max_position > 0 &&
             out.original_max_position <= model.max_position) {
    out.factor = static_cast<double>(model.max_position) / static_cast<double>(out.original_max_position);
  } else {
    rope.fail("factor", "must be a number of at least 1");
  }
  if (out.scaling == RopeScaling::kLlama3) read_llama3(rope, out);
  if (out.scaling == RopeScaling::kYarn) read_yarn(rope, out);
  return out;
}

bool is_object(const JsonObject& config, const char* key) {
  const nlohmann::json* value = config.find(key);
  return value != nullptr && value->is_object();
}

}  // namespace

void read_rope(const JsonObject& config, const Architecture& architecture, ModelConfig& out) {
  const double theta = config.number_or("rope_theta", kMinTheta, kMaxTheta, architecture.default_theta);
  const double local_theta = config.number_or("rope_local_base_freq", kMinTheta, kMaxTheta, kLocalTheta);
  if (config.find("rope_parameters") != nullptr) {
    const JsonObject rope = config.child("rope_parameters");
    const bool nested = is_object(rope, "full_attention") || is_object(rope, "sliding_attention");
    if (!nested) {
      out.rope = read_rope_object(rope, theta, out);
    } else if (architecture.gemma) {
      out.rope = read_rope_object(rope.child("full_attention"), theta, out);
      out.rope_local = read_rope_object(rope.child("sliding_attention"), local_theta, out);
      return;
    } else {
      config.unsupported("rope_parameters", "settings per layer type are not supported for this architecture");
    }
  } else if (config.find("rope_scaling") != nullptr) {
    out.rope = read_rope_object(config.child("rope_scaling"), theta, out);
  } else {
    out.rope.theta = theta;
  }
  if (config.number_or("partial_rotary_factor", 0, 1, 1) != 1) {
    config.unsupported("partial_rotary_factor", "rotating a part of the head is not supported for this architecture");
  }
  if (architecture.gemma) {
    out.rope_local.theta = local_theta;  // scaling is for the global layers only
  } else {
    out.rope_local = out.rope;
  }
}

}  // namespace tokenmill
