// HTTP by libcurl, which is loaded when it is first needed: programs that never download need none.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "checkpoint/hub/hub_settings.h"

namespace tokenmill {

struct HttpRequest {
  std::string url;
  bool head = false;
  int64_t from = 0;    // Range: bytes=from-
  long timeout_s = 0;  // for the whole answer; 0: none, but settings.download_timeout_s without a byte ends it
  // For the bytes of a 200 or 206; false ends the transfer. Null: they go to HttpResponse::body.
  std::function<bool(std::string_view)> sink;
  // Before the first of these bytes, or at the end where there are none. False ends the transfer.
  std::function<bool(const struct HttpResponse&)> on_headers;
  const std::function<bool()>* keep_going = nullptr;  // asked several times a second; false ends the transfer
};

struct HttpResponse {
  enum class Failure {
    kNone,     // there is a status
    kNetwork,  // no connection: a name that is not found, nobody there, no certificate
    kCut,      // broken off, or nothing came in time; another try may help
    kStopped,  // by sink, on_headers or keep_going
  };
  Failure failure = Failure::kNone;
  std::string message;  // of a failure
  long status = 0;
  std::map<std::string, std::string> headers;        // of the last answer, names in lower case
  std::map<std::string, std::string> first_headers;  // of all answers on the way, the first of each name
  std::string body;                                  // at most kBodyBytesMax

  static constexpr size_t kBodyBytesMax = size_t{64} << 20;
  std::string header(const std::string& name) const;  // "" where it is not there
};

// One a thread; keeps its connections. The token goes to the settings' endpoint only, not where that redirects to.
class HttpClient {
 public:
  // Throws Error(kUnsupported) where there is no libcurl.
  explicit HttpClient(const HubSettings& settings);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  HttpResponse perform(const HttpRequest& request);

 private:
  void close();

  const HubSettings& settings_;
  void* handle_ = nullptr;
  void* multi_ = nullptr;  // keeps the connections
};

// A name as part of a URL's path; `keep` are characters left as they are beside letters, digits and "-._~".
std::string url_quote(std::string_view text, std::string_view keep = "");

}  // namespace tokenmill
