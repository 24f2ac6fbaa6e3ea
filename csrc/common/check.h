// Errors that reach Python as ValueError, IndexError and NotImplementedError, with clean text: op, argument, wanted, got.
#pragma once
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <sstream>
#include <stdexcept>

namespace hetkern {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline std::ostream& operator<<(std::ostream& out, const Sizes& sizes) {
  out << '(';
  for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  return out << (sizes.size() == 1 ? ",)" : ")");
}

template <class... A>
std::string text(const A&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... A>
[[noreturn]] void value_error(const A&... parts) {
  throw std::invalid_argument(text(parts...));
}

template <class... A>
[[noreturn]] void index_error(const A&... parts) {
  throw std::out_of_range(text(parts...));
}

}  // namespace hetkern
