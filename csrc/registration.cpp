// Which copy of the library registers, and where it lies.
#include "registration.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <filesystem>
#include <optional>
#include <string>

namespace srmsnorm {
namespace {

std::optional<c10::OperatorHandle> find(const char* name) {
  return c10::Dispatcher::singleton().findSchema({name, ""});
}

// The file that holds this function; asked for while the library loads, as a relative path means something else later.
std::string find_this_library() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&find_this_library), &info) == 0 || !info.dli_fname) return "an unknown file";
  std::error_code error;
  auto path = std::filesystem::absolute(info.dli_fname, error);
  return error ? info.dli_fname : path.string();
}

const std::string& this_library() {
  static const std::string path = find_this_library();
  return path;
}

bool none_before() {
  if (!find("srmsnorm::srms_norm")) return true;
  auto library = find("srmsnorm::_library");
  TORCH_WARN("srmsnorm: its operators are registered already, by ",
             library ? library->typed<std::string()>().call() : "another library", "; ", this_library(),
             " is loaded too, but stays without effect: load one copy of the library in a process");
  return false;
}

}  // namespace

bool registers() {
  static const bool answer = none_before();  // of the first registration, before there are any of ours
  return answer;
}

// The dispatcher is what all copies in a process have in common.
SRMSNORM_SCHEMAS(m) {
  m.def("_library() -> str", [path = this_library()] { return path; });
}

}  // namespace srmsnorm
