// DirectSink: a guest's receive queue into whose buffers a device writes frames by itself.
//
// Buffers are taken in the order of the guest's ring, given to a device whose ring keeps that
// order, and filled in it: the guest gets them as if each had been copied. Those that were taken
// last can go back unused once the device does not know them any more. Thread: its reactor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace millrace::vswitch {

class DirectSink {
 public:
  enum class Taken : std::uint8_t {
    place,
    empty,  // the guest offers none
    small,  // the next one does not hold such a frame in one piece
    off,    // the queue gives none: it is not enabled, stops, is poisoned or needs more of a header
  };
  // The next buffer, where a frame of `bytes` fits behind its header, which begins at `place`.
  [[nodiscard]] virtual Taken take(std::uint32_t bytes, std::byte*& place) noexcept = 0;
  // The one that was taken last is not used.
  virtual void untake() noexcept = 0;
  // How many were taken and neither filled nor taken back; and the place of the first of them.
  [[nodiscard]] virtual std::size_t taken() const noexcept = 0;
  [[nodiscard]] virtual std::byte* first() const noexcept = 0;
  // The first of them has a frame of so many bytes; 0: it has none, but its turn is over.
  virtual void fill(std::uint32_t bytes, bool checksum_verified) noexcept = 0;
  // Shows the guest what was filled: once for each burst.
  virtual void publish() noexcept = 0;
  // None of those that are taken will be filled: they are the guest's next ones again.
  virtual void give_back() noexcept = 0;

 protected:
  ~DirectSink() = default;
};

}  // namespace millrace::vswitch
