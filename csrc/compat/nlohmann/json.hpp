// torch/csrc's functorch headers include this header, which torch's wheels do not ship. Declarations that they need, never
// called; found only where the real header is not (-idirafter).
#pragma once
#include <string>

namespace nlohmann {
struct json {
  json();
  template <class T>
  explicit json(const T&);
  std::string dump() const;
  static json parse(const std::string&);
  template <class T>
  T get() const;
};
}  // namespace nlohmann
