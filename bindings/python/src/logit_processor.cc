#include "logit_processor.h"

#include <atomic>
#include <cstring>
#include <string>

#include "tokenmill/error.h"

namespace tokenmill::python {
namespace {

namespace nb = nanobind;

std::atomic<bool> leaving{false};

// The message that the request's finish_reason gets: "ValueError: the text".
std::string describe(const nb::python_error& error) {
  const nb::object text = nb::steal(PyObject_Str(error.value().ptr()));
  if (!text.is_valid()) PyErr_Clear();
  return std::string(nb::str(error.type().attr("__name__")).c_str()) + ": " +
         (text.is_valid() ? nb::str(text).c_str() : "");
}

// What a callable returns in place of None: an array of the same kind, which then holds the logits.
void copy_result(nb::handle result, std::span<float> logits) {
  Py_buffer view;
  if (PyObject_GetBuffer(result.ptr(), &view, PyBUF_CONTIG_RO | PyBUF_FORMAT) != 0) throw nb::python_error();
  const bool fits = static_cast<size_t>(view.len) == logits.size_bytes() && view.format != nullptr &&
                    std::strcmp(view.format, "f") == 0;
  if (fits) std::memcpy(logits.data(), view.buf, logits.size_bytes());
  PyBuffer_Release(&view);
  if (!fits) throw Error(ErrorKind::kType, "it must return None or float32 logits of the vocabulary's length.");
}

class PythonProcessor {
 public:
  explicit PythonProcessor(nb::handle callable) : callable_(callable.inc_ref().ptr()) {}
  PythonProcessor(const PythonProcessor&) = delete;
  PythonProcessor& operator=(const PythonProcessor&) = delete;
  ~PythonProcessor() {
    if (leaving || !Py_IsInitialized()) return;
    const nb::gil_scoped_acquire acquire;
    Py_DECREF(callable_);
  }

  void operator()(std::span<const int32_t> output_ids, std::span<float> logits) const {
    if (leaving) throw Error(ErrorKind::kRuntime, "the interpreter is about to end.");
    const nb::gil_scoped_acquire acquire;
    try {
      call(output_ids, logits);
    } catch (const nb::python_error& error) {
      throw Error(ErrorKind::kRuntime, describe(error));
    }
  }

 private:
  void call(std::span<const int32_t> output_ids, std::span<float> logits) const {
    nb::list ids;
    for (const int32_t id : output_ids) ids.append(id);
    // Memory of Python's own: a callable that keeps the view does no harm.
    const auto size = static_cast<Py_ssize_t>(logits.size_bytes());
    const nb::object bytes =
        nb::steal(PyByteArray_FromStringAndSize(reinterpret_cast<const char*>(logits.data()), size));
    if (!bytes.is_valid()) throw nb::python_error();
    const nb::object flat = nb::steal(PyMemoryView_FromObject(bytes.ptr()));
    if (!flat.is_valid()) throw nb::python_error();
    const nb::object view = flat.attr("cast")("f");
    const nb::object result = nb::handle(callable_)(ids, view);
    if (result.is_none()) {
      std::memcpy(logits.data(), PyByteArray_AsString(bytes.ptr()), logits.size_bytes());
    } else {
      copy_result(result, logits);
    }
  }

  PyObject* callable_;
};

}  // namespace

std::shared_ptr<const LogitProcessor> to_logit_processor(nb::handle callable) {
  if (callable.is_none()) return nullptr;
  if (PyCallable_Check(callable.ptr()) == 0) {
    throw Error(ErrorKind::kType, std::string("custom_logit_processor must be a callable or None, got ") +
                                      nb::repr(callable).c_str() + ".");
  }
  auto processor = std::make_shared<PythonProcessor>(callable);
  return std::make_shared<const LogitProcessor>(
      [processor](std::span<const int32_t> output_ids, std::span<float> logits) { (*processor)(output_ids, logits); });
}

void leave() { leaving = true; }

}  // namespace tokenmill::python
