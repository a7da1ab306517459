#include "checkpoint/hub/http_client.h"

#define CURL_DISABLE_TYPECHECK
#define CURL_DISABLE_DEPRECATION  // the newer names are not in every libcurl that may be loaded
#include <curl/curl.h>
#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <utility>

#include "checkpoint/load_error.h"

namespace tokenmill {
namespace {

constexpr long kRedirectsMax = 10;
constexpr size_t kErrorBodyBytesMax = size_t{64} << 10;

// libcurl's functions. Its ABI is stable: https://curl.se/libcurl/abi.html
struct Curl {
  decltype(&::curl_global_init) global_init = nullptr;
  decltype(&::curl_easy_init) easy_init = nullptr;
  decltype(&::curl_easy_cleanup) easy_cleanup = nullptr;
  decltype(&::curl_easy_reset) easy_reset = nullptr;
  decltype(&::curl_easy_setopt) setopt = nullptr;
  decltype(&::curl_easy_getinfo) getinfo = nullptr;
  decltype(&::curl_multi_init) multi_init = nullptr;
  decltype(&::curl_multi_cleanup) multi_cleanup = nullptr;
  decltype(&::curl_multi_add_handle) multi_add = nullptr;
  decltype(&::curl_multi_remove_handle) multi_remove = nullptr;
  decltype(&::curl_multi_perform) multi_perform = nullptr;
  decltype(&::curl_multi_poll) multi_poll = nullptr;
  decltype(&::curl_multi_info_read) multi_info_read = nullptr;
  decltype(&::curl_easy_strerror) strerror = nullptr;
  decltype(&::curl_slist_append) slist_append = nullptr;
  decltype(&::curl_slist_free_all) slist_free_all = nullptr;
  bool loaded = false;

  Curl() {
    void* library = nullptr;
    for (const char* name : {"libcurl.so.4", "libcurl-gnutls.so.4", "libcurl.so"}) {
      if ((library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL)) != nullptr) break;
    }
    if (library == nullptr) return;
    bool all = true;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(::dlsym(library, name));
      all = all && function != nullptr;
    };
    find(global_init, "curl_global_init");
    find(easy_init, "curl_easy_init");
    find(easy_cleanup, "curl_easy_cleanup");
    find(easy_reset, "curl_easy_reset");
    find(setopt, "curl_easy_setopt");
    find(getinfo, "curl_easy_getinfo");
    find(multi_init, "curl_multi_init");
    find(multi_cleanup, "curl_multi_cleanup");
    find(multi_add, "curl_multi_add_handle");
    find(multi_remove, "curl_multi_remove_handle");
    find(multi_perform, "curl_multi_perform");
    find(multi_poll, "curl_multi_poll");
    find(multi_info_read, "curl_multi_info_read");
    find(strerror, "curl_easy_strerror");
    find(slist_append, "curl_slist_append");
    find(slist_free_all, "curl_slist_free_all");
    loaded = all && global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
  }
};

const Curl& curl() {
  static const Curl functions;
  return functions;
}

struct Transfer {
  const HttpRequest& request;
  CURL* handle;
  HttpResponse response;
  bool headers_told = false, stopped = false;

  long status() const {
    long code = 0;
    curl().getinfo(handle, CURLINFO_RESPONSE_CODE, &code);
    return code;
  }
  bool tell_headers() {
    if (std::exchange(headers_told, true) || !request.on_headers) return true;
    response.status = status();
    return request.on_headers(response);
  }
};

size_t on_header(char* data, size_t size, size_t count, void* user) {
  auto& response = static_cast<Transfer*>(user)->response;
  std::string_view line(data, size * count);
  while (line.ends_with('\n') || line.ends_with('\r')) line.remove_suffix(1);
  if (line.starts_with("HTTP/")) response.headers.clear();
  const size_t colon = line.find(':');
  if (colon != std::string_view::npos) {
    std::string name(line.substr(0, colon));
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    line.remove_prefix(colon + 1);
    while (line.starts_with(' ') || line.starts_with('\t')) line.remove_prefix(1);
    response.headers[name] = line;
    response.first_headers.emplace(std::move(name), line);
  }
  return size * count;
}

size_t on_body(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::string_view bytes(data, size * count);
  const long status = transfer.status();
  const bool wanted = status == 200 || status == 206;
  if (wanted && !transfer.tell_headers()) {
    transfer.stopped = true;
    return 0;
  }
  if (wanted && transfer.request.sink) {
    if (transfer.request.sink(bytes)) return bytes.size();
    transfer.stopped = true;
    return 0;
  }
  const size_t limit = wanted ? HttpResponse::kBodyBytesMax : kErrorBodyBytesMax;
  if (transfer.response.body.size() + bytes.size() > limit) return wanted ? 0 : bytes.size();
  transfer.response.body.append(bytes);
  return bytes.size();
}

// curl_easy_perform(), but keep_going is asked ten times a second also while nothing comes.
CURLcode perform_in(CURLM* multi, Transfer& transfer) {
  static constexpr int kLookMs = 100;
  const Curl& api = curl();
  const auto* keep_going = transfer.request.keep_going;
  CURLMcode status = api.multi_add(multi, transfer.handle);
  if (status != CURLM_OK) return CURLE_OUT_OF_MEMORY;
  int running = 1;
  while (status == CURLM_OK && running > 0 && !transfer.stopped) {
    status = api.multi_perform(multi, &running);
    if (status != CURLM_OK || running == 0) break;
    int ready = 0;
    status = api.multi_poll(multi, nullptr, 0, kLookMs, &ready);
    transfer.stopped |= keep_going != nullptr && !(*keep_going)();
  }
  CURLcode code = transfer.stopped ? CURLE_ABORTED_BY_CALLBACK : CURLE_OUT_OF_MEMORY;
  int left = 0;
  while (const CURLMsg* const message = api.multi_info_read(multi, &left)) {
    if (message->msg == CURLMSG_DONE) code = message->data.result;
  }
  api.multi_remove(multi, transfer.handle);
  return code;
}

HttpResponse::Failure failure_of(CURLcode code, bool stopped) {
  if (stopped) return HttpResponse::Failure::kStopped;
  switch (code) {
    case CURLE_OK:
      return HttpResponse::Failure::kNone;
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
    case CURLE_TOO_MANY_REDIRECTS:
      return HttpResponse::Failure::kNetwork;
    default:
      return HttpResponse::Failure::kCut;
  }
}

}  // namespace

std::string HttpResponse::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

HttpClient::HttpClient(const HubSettings& settings) : settings_(settings) {
  if (curl().loaded) {
    handle_ = curl().easy_init();
    multi_ = curl().multi_init();
  }
  if (handle_ != nullptr && multi_ != nullptr) return;
  close();
  throw Error(ErrorKind::kUnsupported,
              "libcurl.so.4 is not installed, which downloading a model needs; install it (Debian, Ubuntu: apt-get "
              "install libcurl4), or download the model by other means and pass its folder");
}

HttpClient::~HttpClient() { close(); }

void HttpClient::close() {
  if (handle_ != nullptr) curl().easy_cleanup(handle_);
  if (multi_ != nullptr) curl().multi_cleanup(multi_);
}

HttpResponse HttpClient::perform(const HttpRequest& request) {
  const Curl& api = curl();
  Transfer transfer{.request = request, .handle = handle_, .response = {}};
  api.easy_reset(handle_);
  const auto set = [&](CURLoption option, auto value) { api.setopt(handle_, option, value); };
  set(CURLOPT_URL, request.url.c_str());
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_PROTOCOLS, static_cast<long>(CURLPROTO_HTTP | CURLPROTO_HTTPS));
  set(CURLOPT_REDIR_PROTOCOLS, static_cast<long>(CURLPROTO_HTTP | CURLPROTO_HTTPS));
  set(CURLOPT_FOLLOWLOCATION, 1L);
  set(CURLOPT_MAXREDIRS, kRedirectsMax);
  set(CURLOPT_USERAGENT, "tokenmill");
  set(CURLOPT_CONNECTTIMEOUT, settings_.metadata_timeout_s);
  if (request.timeout_s > 0) set(CURLOPT_TIMEOUT, request.timeout_s);
  set(CURLOPT_LOW_SPEED_LIMIT, 1L);
  set(CURLOPT_LOW_SPEED_TIME, settings_.download_timeout_s);
  set(CURLOPT_HEADERFUNCTION, &on_header);
  set(CURLOPT_HEADERDATA, &transfer);
  set(CURLOPT_WRITEFUNCTION, &on_body);
  set(CURLOPT_WRITEDATA, &transfer);
  if (request.head) set(CURLOPT_NOBODY, 1L);
  const std::string range = std::to_string(request.from) + "-";
  if (request.from > 0) set(CURLOPT_RANGE, range.c_str());
  // libcurl itself keeps this header from other hosts that a redirect leads to.
  curl_slist* headers = api.slist_append(nullptr, "Accept-Encoding: identity");
  if (!settings_.token.empty()) {
    headers = api.slist_append(headers, ("Authorization: Bearer " + settings_.token).c_str());
  }
  set(CURLOPT_HTTPHEADER, headers);
  const CURLcode code = perform_in(multi_, transfer);
  api.slist_free_all(headers);
  HttpResponse& response = transfer.response;
  response.status = transfer.status();
  const bool wanted = response.status == 200 || response.status == 206;
  if (code == CURLE_OK && wanted && !transfer.tell_headers()) transfer.stopped = true;
  response.failure = failure_of(code, transfer.stopped);
  if (response.failure != HttpResponse::Failure::kNone) response.message = api.strerror(code);
  return std::move(response);
}

std::string url_quote(std::string_view text, std::string_view keep) {
  static constexpr char kDigits[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 128 && std::isalnum(byte) != 0) || std::string_view("-._~").find(c) != std::string_view::npos ||
        keep.find(c) != std::string_view::npos) {
      out.push_back(c);
    } else {
      out += {'%', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return out;
}

}  // namespace tokenmill
