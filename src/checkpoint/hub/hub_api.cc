#include "checkpoint/hub/hub_api.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "checkpoint/hub/hub_cache.h"
#include "checkpoint/hub/hub_id.h"
#include "checkpoint/json_file.h"
#include "checkpoint/load_error.h"

namespace tokenmill {
namespace {

using nlohmann::json;
using Failure = HttpResponse::Failure;

constexpr double kFirstDelay = 0.5, kDelayMax = 60;
constexpr size_t kMaxFiles = 100000;

// "abc", W/"abc" -> abc
std::string plain_etag(std::string etag) {
  if (etag.starts_with("W/")) etag.erase(0, 2);
  std::erase(etag, '"');
  return etag;
}

HubFile file_from_json(const json& sibling) {
  HubFile file;
  const auto name = sibling.find("rfilename");
  if (name != sibling.end() && name->is_string()) file.name = name->get<std::string>();
  const auto lfs = sibling.find("lfs");
  const bool large = lfs != sibling.end() && lfs->is_object();
  const json& holder = large ? *lfs : sibling;
  const auto hash = holder.find(large ? "sha256" : "blobId");
  if (hash != holder.end() && hash->is_string()) file.etag = hash->get<std::string>();
  if (large && file.etag.empty() && lfs->contains("oid") && (*lfs)["oid"].is_string()) file.etag = (*lfs)["oid"];
  const auto size = holder.find("size");
  if (size != holder.end() && size->is_number_unsigned())
    file.size = static_cast<int64_t>(std::min<uint64_t>(size->get<uint64_t>(), INT64_MAX / kMaxFiles));
  if (!is_plain_name(file.etag)) file.etag.clear();
  return file;
}

bool is_ok(const HttpResponse& response) {
  return response.failure == Failure::kNone && response.status >= 200 && response.status < 300;
}

}  // namespace

HubListing parse_hub_listing(std::string_view body, const std::string& source) {
  const json info = parse_json_object(body, source);
  HubListing listing;
  if (info.contains("sha") && info["sha"].is_string()) listing.commit = info["sha"];
  const auto siblings = info.find("siblings");
  if (!is_commit_hash(listing.commit) || siblings == info.end() || !siblings->is_array() ||
      siblings->size() > kMaxFiles) {
    fail_load(source, "must list a commit and its files; check HF_ENDPOINT", ErrorKind::kRuntime);
  }
  for (const json& sibling : *siblings) {
    HubFile file = sibling.is_object() ? file_from_json(sibling) : HubFile();
    if (is_inside_path(file.name)) listing.files.push_back(std::move(file));
  }
  return listing;
}

bool is_transient(const HttpResponse& response) {
  if (response.failure != Failure::kNone) return response.failure == Failure::kCut;
  return response.status == 429 || response.status == 408 || response.status >= 500;
}

std::optional<std::time_t> http_date(const std::string& text) {
  static constexpr std::string_view kMonths = "JanFebMarAprMayJunJulAugSepOctNovDec";
  char month[4] = "", zone[4] = "";
  std::tm time{};
  int length = 0;
  const int read = std::sscanf(text.c_str(), "%*3[A-Za-z], %2d %3s %4d %2d:%2d:%2d %3s%n", &time.tm_mday, month,
                               &time.tm_year, &time.tm_hour, &time.tm_min, &time.tm_sec, zone, &length);
  const size_t place = kMonths.find(month);
  if (read != 7 || static_cast<size_t>(length) != text.size() || std::string_view(zone) != "GMT" ||
      std::string_view(month).size() != 3 || place == kMonths.npos || place % 3 != 0) {
    return std::nullopt;
  }
  time.tm_mon = static_cast<int>(place / 3);
  time.tm_year -= 1900;
  return timegm(&time);
}

std::optional<double> retry_after_s(const HttpResponse& response) {
  const std::string after = response.header("retry-after");
  char* end = nullptr;
  const double asked = std::strtod(after.c_str(), &end);
  if (!after.empty() && *end == '\0' && std::isfinite(asked) && asked >= 0) return asked;
  const auto date = http_date(after);
  if (!date) return std::nullopt;
  return std::max(0.0, std::difftime(*date, std::time(nullptr)));
}

double retry_delay_s(const HttpResponse& response, int attempt) {
  if (const auto asked = retry_after_s(response)) return *asked;
  return std::min(kFirstDelay * std::pow(2.0, attempt), kDelayMax);
}

HubApi::HubApi(const HubSettings& settings, const std::string& repo, const std::function<bool()>* keep_going)
    : settings_(settings), repo_(repo), keep_going_(keep_going), client_(settings) {}

void HubApi::wait(double seconds) const {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) {
    if (keep_going_ != nullptr && !(*keep_going_)()) {
      fail_load(repo_, "the download was stopped; what has come is kept, and the next one goes on from it",
                ErrorKind::kRuntime);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

HttpResponse HubApi::ask(const HttpRequest& request) {
  HttpRequest asked = request;
  asked.keep_going = keep_going_;
  for (int attempt = 0;; ++attempt) {
    HttpResponse response = client_.perform(asked);
    if (!is_transient(response) || attempt + 1 >= kHubAttemptsMax) return response;
    const double delay = retry_delay_s(response, attempt);
    if (delay > kDelayMax) return response;  // told rather than slept through
    wait(delay);
  }
}

void HubApi::refuse(const HttpResponse& response, const std::string& what) const {
  const std::string page = settings_.endpoint + "/" + repo_;
  const std::string code = response.header("x-error-code");
  const std::string status = "HTTP status " + std::to_string(response.status);
  const bool has_token = !settings_.token.empty();
  if (response.failure == Failure::kStopped) {
    fail_load(repo_, "the download was stopped; what has come is kept, and the next one goes on from it",
              ErrorKind::kRuntime);
  }
  if (response.failure != Failure::kNone) {
    throw HubUnreachable(repo_ + ": " + what + " cannot be fetched from " + settings_.endpoint + " (" +
                         response.message +
                         "); check the network and HF_ENDPOINT, or download the model on another machine and pass its "
                         "folder");
  }
  if (code == "GatedRepo" || response.status == 403) {
    fail_load(repo_, "access is gated (" + status + "): ask for it at " + page +
                         " and set HF_TOKEN to a token of the " +
                         (has_token ? "account that has it; the one in use has not" : "account that has it"));
  }
  if (response.status == 401) {
    fail_load(repo_, "the hub knows no such repository, or it is private (" + status + "): check the name at " + page +
                         (has_token ? "; the token in HF_TOKEN or the token file may be wrong"
                                    : "; for a private or gated one set HF_TOKEN or run 'huggingface-cli login'"));
  }
  if (response.status == 404) {
    if (code == "RevisionNotFound") {
      fail_load(repo_, "has no revision " + quote(what) + "; see " + page + "/tree/main for its branches and tags");
    }
    if (code == "EntryNotFound") fail_load(repo_, "has no file " + quote(what) + " in this revision; see " + page);
    fail_load(repo_,
              "the hub has no such repository or revision (asked for " + quote(what) + "); check the name at " + page);
  }
  if (response.status == 429) {
    const auto after = retry_after_s(response);
    throw HubUnreachable(repo_ + ": the hub takes no more requests now (" + status + "); try again " +
                         (after ? "in " + std::to_string(std::lround(*after)) + " seconds" : "later") +
                         (has_token ? "" : ", or set HF_TOKEN, which allows more"));
  }
  if (response.status >= 500) {
    throw HubUnreachable(repo_ + ": " + what + " cannot be fetched: the hub has a fault (" + status +
                         "); try again later");
  }
  fail_load(repo_, what + " cannot be fetched (" + status + " from " + settings_.endpoint + "); check HF_ENDPOINT",
            ErrorKind::kRuntime);
}

HubListing HubApi::list(const std::string& revision) {
  HttpRequest request;
  request.url = settings_.endpoint + "/api/models/" + repo_ + "/revision/" + url_quote(revision) + "?blobs=true";
  const HttpResponse response = ask(request);
  if (!is_ok(response)) refuse(response, revision);
  return parse_hub_listing(response.body, request.url);
}

void HubApi::complete(HubFile& file, const std::string& commit) {
  if (!file.etag.empty() && file.size >= 0) return;
  HttpRequest request;
  request.url = file_url(file.name, commit);
  request.head = true;
  const HttpResponse response = ask(request);
  if (!is_ok(response)) refuse(response, file.name);
  // The hub's own answer comes before a redirect; what a storage server calls ETag is its own affair.
  const auto first = [&](const char* name) {
    const auto found = response.first_headers.find(name);
    return found == response.first_headers.end() ? std::string() : found->second;
  };
  const std::string linked = first("x-linked-etag"), size = first("x-linked-size");
  file.etag = plain_etag(linked.empty() ? first("etag") : linked);
  file.size = std::atoll((size.empty() ? response.header("content-length") : size).c_str());
  if (!is_plain_name(file.etag)) {
    fail_load(request.url, "has no usable ETag; is this a hub? Check HF_ENDPOINT", ErrorKind::kRuntime);
  }
}

std::string HubApi::file_url(const std::string& name, const std::string& commit) const {
  return settings_.endpoint + "/" + repo_ + "/resolve/" + commit + "/" + url_quote(name, "/");
}

}  // namespace tokenmill
