// The hub's routes, its retries and its refusals (https://huggingface.co/docs/hub/api):
//
//   GET  ENDPOINT/api/models/REPO/revision/REVISION?blobs=true   commit, and name, size and hash of every file
//   HEAD ENDPOINT/REPO/resolve/COMMIT/FILE                       size and hash of one, where the listing has none
//   GET  the same                                                its content, mostly by way of a redirect
#pragma once

#include <cstdint>
#include <ctime>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/hub/http_client.h"

namespace tokenmill {

struct HubFile {
  std::string name;
  std::string etag;   // SHA-256 of a large file, git's SHA-1 of a small one; "": not known yet
  int64_t size = -1;  // bytes; -1: not known yet
};

struct HubListing {
  std::string commit;
  std::vector<HubFile> files;
};

// A hub that cannot be asked now, rather than one that says no: a copy in the cache may serve instead.
class HubUnreachable : public std::exception {
 public:
  explicit HubUnreachable(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

class HubApi {
 public:
  // keep_going: asked several times a second while something is waited for; may be null.
  HubApi(const HubSettings& settings, const std::string& repo, const std::function<bool()>* keep_going);

  // Throws Error where the hub refuses, HubUnreachable where it cannot be asked.
  HubListing list(const std::string& revision);
  void complete(HubFile& file, const std::string& commit);  // etag and size
  std::string file_url(const std::string& name, const std::string& commit) const;

  // Repeats after 429 (as long as Retry-After asks for), 5xx and broken connections; the last answer comes back.
  HttpResponse ask(const HttpRequest& request);
  // What an answer that is no success means for the user. `what`: the revision or the file that was asked for.
  [[noreturn]] void refuse(const HttpResponse& response, const std::string& what) const;
  // Sleeps, unless keep_going ends it: then it throws Error(kRuntime).
  void wait(double seconds) const;
  HttpClient& client() { return client_; }

 private:
  const HubSettings& settings_;
  std::string repo_;
  const std::function<bool()>* keep_going_;
  HttpClient client_;
};

// source: for messages. Throws Error(kRuntime | kValue) on what is no listing; names that lead out of a folder are left
// out.
HubListing parse_hub_listing(std::string_view body, const std::string& source);

// Whether another try may help, and how many seconds to wait before the `attempt`-th (from 0) repetition.
bool is_transient(const HttpResponse& response);
// "Sun, 06 Nov 1994 08:49:37 GMT" as RFC 9110 has it; nullopt for anything else.
std::optional<std::time_t> http_date(const std::string& text);
// What Retry-After asks for, as seconds or a date; nullopt where it is not there or says nothing.
std::optional<double> retry_after_s(const HttpResponse& response);
// The same, else longer with each attempt.
double retry_delay_s(const HttpResponse& response, int attempt);
inline constexpr int kHubAttemptsMax = 5;

}  // namespace tokenmill
