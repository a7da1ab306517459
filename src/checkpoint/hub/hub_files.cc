#include "checkpoint/hub/hub_files.h"

#include <algorithm>
#include <cctype>
#include <set>
#include <string_view>

#include "checkpoint/json_file.h"
#include "checkpoint/load_error.h"

namespace tokenmill {
namespace {

constexpr std::string_view kSideFiles[] = {"config.json",
                                           "generation_config.json",
                                           "tokenizer.json",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "added_tokens.json",
                                           "vocab.json",
                                           "merges.txt",
                                           "chat_template.jinja",
                                           "chat_template.json"};
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = size_t{128} << 20;
constexpr size_t kListedMax = 12;

bool has(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

std::string_view base_name(std::string_view path) { return path.substr(path.rfind('/') + 1); }

// Whether the name has the tag as a word of its own: "model-Q4_K_M.gguf" has q4_k_m, "model-Q4_K_M.gguf" has no q4_k.
bool has_tag(const std::string& name, const std::string& tag) {
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
  for (size_t at = name.find(tag); at != std::string::npos; at = name.find(tag, at + 1)) {
    const bool begins = at == 0 || !is_word(name[at - 1]);
    const size_t end = at + tag.size();
    if (begins && (end == name.size() || !is_word(name[end]))) return true;
  }
  return false;
}

std::vector<std::string> gguf_files(const std::vector<std::string>& names) {
  std::vector<std::string> ggufs;
  for (const std::string& name : names) {
    // A vision encoder is no language model.
    if (lower(name).ends_with(".gguf") && !lower(base_name(name)).starts_with("mmproj")) ggufs.push_back(name);
  }
  return ggufs;
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size() && i < kListedMax; ++i) text += (i == 0 ? "" : ", ") + quote(names[i]);
  if (names.size() > kListedMax) text += " and " + std::to_string(names.size() - kListedMax) + " more";
  return text;
}

bool is_split(std::string_view name) { return name.find("-of-0") != std::string_view::npos; }

std::string choose_gguf(const HubId& id, const std::vector<std::string>& names) {
  const std::vector<std::string> all = gguf_files(names);
  if (all.empty())
    fail_load(id.repo, "holds no .gguf file; leave ':" + id.selector + "' out, or choose another repository");
  std::vector<std::string> found;
  const std::string wanted = lower(id.selector);
  for (const std::string& name : all) {
    const bool exact = name == id.selector || base_name(name) == id.selector;
    if (exact) return name;
    if (wanted.empty() || has_tag(lower(name), wanted)) found.push_back(name);
  }
  if (found.empty()) {
    fail_load(id.repo,
              "holds no GGUF file that is or has " + quote(id.selector) + " in its name; it has " + listed(all));
  }
  if (std::all_of(found.begin(), found.end(), [](const std::string& name) { return is_split(name); })) {
    fail_load(id.repo,
              quote(found.front()) +
                  " is part of a split GGUF model, which is not supported; merge its parts "
                  "with llama.cpp's gguf-split, or choose a quantisation that is one file",
              ErrorKind::kUnsupported);
  }
  if (found.size() > 1) {
    fail_load(id.repo, "holds several GGUF files; choose one by its name or quantisation, as in " +
                           quote(id.repo + ":Q4_K_M") + ": " + listed(found));
  }
  return found.front();
}

[[noreturn]] void fail_no_weights(const HubId& id, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    for (const char* suffix : {".bin", ".pt", ".pth", ".ckpt", ".bin.index.json"}) {
      if (name.ends_with(suffix) && base_name(name) != "training_args.bin") {
        fail_load(id.repo,
                  "holds pickled weights only (" + quote(name) +
                      "), which are not loaded because they can run code; choose a repository or a revision that has "
                      "model.safetensors, or convert them",
                  ErrorKind::kUnsupported);
      }
    }
  }
  fail_load(id.repo, std::string("holds no weights (neither ") + kSingleFile + " nor " + kIndexFile +
                         " nor a .gguf file); choose another repository");
}

}  // namespace

HubChoice choose_hub_files(const HubId& id, const std::vector<std::string>& names, const std::string& load_format,
                           HubWant want) {
  HubChoice choice;
  const bool has_folder = has(names, "config.json") && (has(names, kSingleFile) || has(names, kIndexFile));
  const bool may_be_gguf = load_format == "auto" && !has_folder && !gguf_files(names).empty();
  const bool tokenizer_folder = want == HubWant::kTokenizer && has(names, "tokenizer.json");
  if (!id.selector.empty() || load_format == "gguf" || (may_be_gguf && !tokenizer_folder)) {
    choice.gguf = choose_gguf(id, names);
    choice.files.push_back(choice.gguf);
    return choice;
  }
  for (const std::string_view name : kSideFiles) {
    if (has(names, name)) choice.files.emplace_back(name);
  }
  if (want == HubWant::kTokenizer) return choice;
  if (!has(names, "config.json")) {
    fail_load(id.repo, "holds no config.json and no .gguf file, so it is no language model; check the name");
  }
  if (load_format == "dummy") return choice;
  if (has(names, kSingleFile)) {
    choice.files.emplace_back(kSingleFile);
  } else if (has(names, kIndexFile)) {
    choice.index = kIndexFile;
    choice.files.emplace_back(kIndexFile);
  } else {
    fail_no_weights(id, names);
  }
  return choice;
}

std::vector<std::string> index_shards(const std::string& index_path) {
  const nlohmann::json index = read_json_object(index_path, kMaxIndexBytes);
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) fail_load(index_path, "key 'weight_map' must be an object");
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string() || !is_inside_path(shard.get_ref<const std::string&>())) {
      fail_load(index_path, "key 'weight_map." + tensor + "' must name a file of the repository");
    }
    shards.insert(shard.get<std::string>());
  }
  return {shards.begin(), shards.end()};
}

}  // namespace tokenmill
