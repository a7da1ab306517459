#include "convert.h"

#include <cstdio>
#include <limits>
#include <utility>

namespace tokenmill::python {
namespace {

// Lives as long as the interpreter: nanobind clears it through the module's clean-up.
nb::object* engine_error_slot = nullptr;

std::string repr_of(nb::handle value) {
  std::string text = nb::repr(value).c_str();
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

bool is_numpy_bool(nb::handle value) {
  const std::string name = nb::str(value.type().attr("__name__")).c_str();
  return name == "bool_" || name == "bool";
}

bool is_bytes(nb::handle value) { return PyBytes_Check(value.ptr()) || PyByteArray_Check(value.ptr()); }

[[noreturn]] void throw_type(const std::string& name, const std::string& rule, nb::handle got) {
  throw Error(ErrorKind::kType, name + " must be " + rule + ", got " + repr_of(got) + "." +
                                    (is_bytes(got) ? " Bytes are decoded first: .decode('utf-8')." : ""));
}

OptionValue whole_number(const std::string& name, nb::handle value) {
  const nb::object number = nb::steal(PyNumber_Index(value.ptr()));
  if (!number) throw nb::python_error();
  int overflow = 0;
  const long long small = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow == 0) return int64_t{small};
  if (overflow > 0) {
    const unsigned long long large = PyLong_AsUnsignedLongLong(number.ptr());
    if (!PyErr_Occurred()) return uint64_t{large};
    PyErr_Clear();
  }
  throw Error(ErrorKind::kValue, name + " must be a 64-bit int, got " + repr_of(value) + ".");
}

int64_t token_id(const std::string& name, nb::handle value) {
  if (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr())) throw_type(name, "made of int", value);
  const OptionValue number = whole_number(name, value);
  const auto* id = std::get_if<int64_t>(&number);
  if (id == nullptr) throw Error(ErrorKind::kValue, name + " must be made of token ids, got " + repr_of(value) + ".");
  return *id;
}

OptionValue sequence_value(const std::string& name, nb::handle value) {
  std::vector<std::string> texts;
  std::vector<int64_t> ids;
  for (const nb::handle item : nb::iter(value)) {
    if (PyUnicode_Check(item.ptr())) {
      texts.push_back(to_utf8(name, item, " of item " + std::to_string(texts.size())));
    } else if (PyIndex_Check(item.ptr()) && !PyBool_Check(item.ptr())) {
      ids.push_back(token_id(name, item));
    } else {
      throw_type(name, "made of str or of int", item);
    }
    if (!texts.empty() && !ids.empty()) throw_type(name, "made of one type", value);
  }
  if (!ids.empty()) return ids;
  return texts;
}

OptionValue map_value(const std::string& name, nb::handle value) {
  std::map<int64_t, double> map;
  const nb::object items = value.attr("items")();
  for (const nb::handle item : nb::iter(items)) {
    nb::object key = item[0];
    if (PyUnicode_Check(key.ptr())) {  // as JSON writes it
      key = nb::steal(PyLong_FromString(to_utf8(name, key).c_str(), nullptr, 10));
      if (!key) {
        PyErr_Clear();
        throw_type(name, "keyed by token ids", item[0]);
      }
    }
    const double bias = PyFloat_AsDouble(nb::object(item[1]).ptr());
    if (PyErr_Occurred()) {
      PyErr_Clear();
      throw_type(name, "a dict of token id to float", value);
    }
    map[token_id(name, key)] = bias;
  }
  return map;
}

}  // namespace

void set_engine_error(nb::object type) {
  delete std::exchange(engine_error_slot, type.is_valid() ? new nb::object(std::move(type)) : nullptr);
}

nb::object exception_of(const Error& error) {
  nb::handle type;
  switch (error.kind()) {
    case ErrorKind::kType:
      type = PyExc_TypeError;
      break;
    case ErrorKind::kValue:
      type = PyExc_ValueError;
      break;
    case ErrorKind::kUnsupported:
      type = PyExc_NotImplementedError;
      break;
    case ErrorKind::kRuntime:
      type = *engine_error_slot;
      break;
  }
  const std::string message = error.what();
  const nb::object text =
      nb::steal(PyUnicode_DecodeUTF8(message.data(), static_cast<Py_ssize_t>(message.size()), "replace"));
  return type(text);
}

void raise_error(const Error& error) {
  const nb::object exception = exception_of(error);
  PyErr_SetObject(exception.type().ptr(), exception.ptr());
  throw nb::python_error();
}

std::string to_utf8(const std::string& name, nb::handle text, const std::string& place) {
  if (!PyUnicode_Check(text.ptr())) throw_type(name, "str", text);
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (data != nullptr) return {data, static_cast<size_t>(size)};
  PyErr_Clear();
  for (Py_ssize_t at = 0; at < PyUnicode_GetLength(text.ptr()); ++at) {
    const Py_UCS4 character = PyUnicode_ReadChar(text.ptr(), at);
    if (character < 0xd800 || character > 0xdfff) continue;
    char surrogate[16];
    std::snprintf(surrogate, sizeof(surrogate), "'\\u%04x'", static_cast<unsigned>(character));
    throw Error(ErrorKind::kValue, name + " must be text without lone surrogates, got " + surrogate + " as character " +
                                       std::to_string(at) + place +
                                       ". No text in UTF-8 holds one; replace it: text.encode('utf-16', "
                                       "'surrogatepass').decode('utf-16', 'replace').");
  }
  throw Error(ErrorKind::kRuntime, "Not enough memory for " + name + " in UTF-8.");
}

OptionValue to_option_value(const std::string& name, nb::handle value) {
  PyObject* object = value.ptr();
  if (value.is_none()) return std::monostate();
  if (PyBool_Check(object)) return object == Py_True;
  if (PyLong_Check(object)) return whole_number(name, value);
  if (PyFloat_Check(object)) return PyFloat_AsDouble(object);
  if (PyUnicode_Check(object)) return to_utf8(name, value);
  if (is_bytes(value)) throw_type(name, "text, a number or a list or dict of these", value);
  if (nb::hasattr(value, "__fspath__")) return to_utf8(name, value.attr("__fspath__")());
  if (nb::hasattr(value, "items")) return map_value(name, value);
  if (is_numpy_bool(value)) return PyObject_IsTrue(object) == 1;
  // An array of no dimensions is a scalar; any other has a length.
  if (PySequence_Check(object) && PyObject_Size(object) >= 0) return sequence_value(name, value);
  PyErr_Clear();
  if (PyIndex_Check(object)) return whole_number(name, value);
  if (PyAnySet_Check(object)) return sequence_value(name, value);
  if (PyNumber_Check(object)) {
    const double number = PyFloat_AsDouble(object);
    if (!PyErr_Occurred()) return number;
    PyErr_Clear();
  }
  throw_type(name, "None, a bool, a number, a str or a list or dict of these", value);
}

nb::object from_option_value(const OptionValue& value) {
  return std::visit(
      [](const auto& held) -> nb::object {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<T, std::monostate>) {
          return nb::none();
        } else if constexpr (std::is_same_v<T, std::string>) {
          return nb::str(held.data(), held.size());
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          nb::list list;
          for (const std::string& text : held) list.append(nb::str(text.data(), text.size()));
          return list;
        } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
          nb::list list;
          for (const int64_t id : held) list.append(id);
          return list;
        } else if constexpr (std::is_same_v<T, std::map<int64_t, double>>) {
          nb::dict dict;
          for (const auto& [id, bias] : held) dict[nb::int_(id)] = bias;
          return dict;
        } else {
          return nb::cast(held);
        }
      },
      value);
}

std::vector<int32_t> to_token_ids(const char* name, nb::handle ids) {
  std::vector<int32_t> result;
  if (!PyList_Check(ids.ptr()) && !PyTuple_Check(ids.ptr()) && !nb::hasattr(ids, "__iter__")) {
    throw_type(name, "a list of int", ids);
  }
  if (PyUnicode_Check(ids.ptr()) || is_bytes(ids)) throw_type(name, "a list of int", ids);
  const Py_ssize_t size = PyObject_Size(ids.ptr());
  if (size < 0) {
    PyErr_Clear();
    throw_type(name, "a list of int", ids);
  }
  result.reserve(static_cast<size_t>(size));
  for (const nb::handle item : nb::iter(ids)) {
    int64_t id = 0;
    int overflow = 0;
    if (PyLong_CheckExact(item.ptr())) {
      id = PyLong_AsLongLongAndOverflow(item.ptr(), &overflow);
    } else {
      id = token_id(name, item);
    }
    if (overflow != 0 || id < std::numeric_limits<int32_t>::min() || id > std::numeric_limits<int32_t>::max()) {
      throw Error(ErrorKind::kValue, std::string(name) + " must be made of token ids, got " + repr_of(item) + ".");
    }
    result.push_back(static_cast<int32_t>(id));
  }
  return result;
}

}  // namespace tokenmill::python
