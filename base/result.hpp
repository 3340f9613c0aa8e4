// Result<T, E> is a value or the reason why there is none, with std::expected's names.
//
// Error is a line for a person (control thread only, it allocates): what is wrong, where, what to
// do. Fault is a code for the data path (never allocates): a peer's fault, which poisons that
// peer's queue.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>

#include "base/check.hpp"

namespace millrace::base {

struct Error {
  std::string message;  // one line, no full stop, no newline
};

template <class E>
struct Unexpected {
  E error;
};
template <class E>
Unexpected(E) -> Unexpected<E>;

// Makes an Error for `return fail("...")`.
[[nodiscard]] inline Unexpected<Error> fail(std::string message) {
  return Unexpected<Error>{Error{std::move(message)}};
}

template <class T = void, class E = Error>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_{std::in_place_index<0>, std::move(value)} {}
  template <class G>
  Result(Unexpected<G> unexpected) : state_{std::in_place_index<1>, std::move(unexpected.error)} {}

  [[nodiscard]] bool has_value() const { return state_.index() == 0; }
  explicit operator bool() const { return has_value(); }
  [[nodiscard]] T& value() & {
    CHECK(has_value());
    return *std::get_if<0>(&state_);
  }
  [[nodiscard]] const T& value() const& {
    CHECK(has_value());
    return *std::get_if<0>(&state_);
  }
  [[nodiscard]] T&& value() && {
    CHECK(has_value());
    return std::move(*std::get_if<0>(&state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  [[nodiscard]] const E& error() const {
    CHECK(!has_value());
    return *std::get_if<1>(&state_);
  }

 private:
  std::variant<T, E> state_;
};

template <class E>
class [[nodiscard]] Result<void, E> {
 public:
  Result() = default;
  template <class G>
  Result(Unexpected<G> unexpected) : state_{std::in_place_index<1>, std::move(unexpected.error)} {}

  [[nodiscard]] bool has_value() const { return state_.index() == 0; }
  explicit operator bool() const { return has_value(); }
  [[nodiscard]] const E& error() const {
    CHECK(!has_value());
    return *std::get_if<1>(&state_);
  }

 private:
  std::variant<std::monostate, E> state_;
};

}  // namespace millrace::base
