// Tokenizer::from_folder: tokenizer.json and the small files beside it.

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "text/tokenizer_impl.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

using Json = nlohmann::json;

std::string_view view(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.size()};
}

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw Error(ErrorKind::kValue, path + ": " + what);
}

// An empty object where there is no such file.
Json read_object(const std::string& path) {
  if (!std::filesystem::exists(path)) return Json::object();
  const MappedFile file(path);
  const auto text = view(file);
  Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) fail(path, "is not valid JSON; download it again");
  if (!json.is_object()) fail(path, "must hold a JSON object; download it again");
  return json;
}

// A token is a string, or an object with its text under "content".
std::string token_text(const std::string& path, const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (found->is_object() && found->contains("content") && (*found)["content"].is_string()) {
    return (*found)["content"].get<std::string>();
  }
  fail(path, std::string("key '") + key + "' must be a string or an object with a string 'content'; correct the file");
}

// A string, or a list of {"name", "template"}: then the one named "default", else the first.
std::string template_text(const std::string& path, const Json& json) {
  const auto found = json.find("chat_template");
  if (found == json.end() || found->is_null()) return "";
  if (found->is_string()) return found->get<std::string>();
  std::string first, chosen;
  if (found->is_array()) {
    for (const Json& entry : *found) {
      if (!entry.is_object() || !entry.value("template", Json()).is_string()) {
        fail(path, "key 'chat_template' must hold objects with a string 'template'; correct the file");
      }
      const std::string text = entry["template"].get<std::string>();
      if (first.empty()) first = text;
      if (entry.value("name", Json()) == "default") chosen = text;
    }
    return chosen.empty() ? first : chosen;
  }
  fail(path, "key 'chat_template' must be a string or a list of named templates; correct the file");
}

bool flag(const std::string& path, const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return false;
  if (!found->is_boolean()) fail(path, std::string("key '") + key + "' must be true or false; correct the file");
  return found->get<bool>();
}

void read_config(const std::string& folder, Tokenizer::Impl& impl) {
  const std::string config_path = folder + "/tokenizer_config.json";
  const std::string map_path = folder + "/special_tokens_map.json";
  const Json config = read_object(config_path);
  impl.bos_text = token_text(config_path, config, "bos_token");
  impl.eos_text = token_text(config_path, config, "eos_token");
  impl.add_bos_token = flag(config_path, config, "add_bos_token");
  if (impl.bos_text.empty() || impl.eos_text.empty()) {
    const Json map = read_object(map_path);
    if (impl.bos_text.empty()) impl.bos_text = token_text(map_path, map, "bos_token");
    if (impl.eos_text.empty()) impl.eos_text = token_text(map_path, map, "eos_token");
  }
  const std::string jinja_path = folder + "/chat_template.jinja";
  if (std::filesystem::exists(jinja_path)) {
    const MappedFile file(jinja_path);
    impl.chat_template = std::string(view(file));
  } else {
    impl.chat_template = template_text(config_path, config);
  }
}

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::from_folder(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  if (std::filesystem::is_directory(folder) && !std::filesystem::exists(path)) {
    fail(path,
         "no such file; save the tokenizer in the fast format (AutoTokenizer.from_pretrained(…).save_pretrained(…))");
  }
  auto impl = std::make_unique<Impl>();
  impl->origin = path;
  read_config(folder, *impl);
  const MappedFile file(path);
  const auto text = view(file);
  TmBytes error{};
  impl->shim = tm_tokenizer_from_json(to_bytes(text), text.size(), &error);
  if (impl->shim == nullptr) fail(path, "is not a valid tokenizer (" + take(error) + "); download it again");
  auto tokenizer = std::make_shared<Tokenizer>(std::move(impl));
  Impl& made = *tokenizer->impl_;
  if (!made.bos_text.empty()) made.bos = tokenizer->token_to_id(made.bos_text);
  if (!made.eos_text.empty()) made.eos = tokenizer->token_to_id(made.eos_text);
  if (made.eos) made.eos_ids.push_back(*made.eos);
  return tokenizer;
}

}  // namespace tokenmill
