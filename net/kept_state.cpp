#include "net/kept_state.hpp"

#include <cstring>
#include <type_traits>

namespace millrace::net {

namespace {

// In host order: it is read on the machine that wrote it. Whoever changes a field changes the
// version.
constexpr std::uint32_t version = 1;
struct Hash {
  std::uint32_t types;
  std::uint8_t key[rss_key_max];
};
struct Record {
  std::uint32_t version, size;
  std::uint64_t features;
  std::uint16_t pairs;
  std::uint8_t has_mac, has_rss;
  RxFilter::Mac mac;
  std::uint16_t padding;
  RxFilter::Contents filter;
  Hash hash, rss_hash;
  std::uint16_t rss_mask, rss_unclassified, rss_transmit_pairs, rss_padding;
  std::uint16_t rss_pairs[rss_entries_max];
  std::uint32_t receive_packets, receive_usecs, transmit_packets, transmit_usecs;
};
static_assert(std::is_trivially_copyable_v<Record>);

Hash packed(const HashConfig& config) {
  Hash out{config.types, {}};
  std::memcpy(out.key, config.key.data(), sizeof out.key);
  return out;
}
HashConfig unpacked(const Hash& hash) {
  HashConfig out{hash.types, {}};
  std::memcpy(out.key.data(), hash.key, sizeof hash.key);
  return out;
}

RssConfig rss_of(const Record& record) {
  RssConfig out{unpacked(record.rss_hash),
                record.rss_mask,
                record.rss_unclassified,
                record.rss_transmit_pairs,
                {}};
  std::memcpy(out.pairs.data(), record.rss_pairs, sizeof record.rss_pairs);
  return out;
}

}  // namespace

std::vector<std::byte> pack(const DriverState& state, std::uint64_t features) {
  Record record{};
  record.version = version, record.size = sizeof record;
  record.features = features;
  record.pairs = static_cast<std::uint16_t>(state.pairs);
  record.has_mac = state.mac ? 1 : 0;
  if (state.mac) record.mac = *state.mac;
  record.filter = state.filter.contents();
  record.hash = packed(state.hash);
  record.has_rss = state.rss ? 1 : 0;
  if (state.rss) {
    record.rss_hash = packed(state.rss->hash);
    record.rss_mask = state.rss->mask;
    record.rss_unclassified = state.rss->unclassified;
    record.rss_transmit_pairs = state.rss->transmit_pairs;
    std::memcpy(record.rss_pairs, state.rss->pairs.data(), sizeof record.rss_pairs);
  }
  record.receive_packets = state.receive.packets;
  record.receive_usecs = state.receive.microseconds;
  record.transmit_packets = state.transmit.packets;
  record.transmit_usecs = state.transmit.microseconds;
  const auto bytes = std::as_bytes(std::span{&record, 1});
  return {bytes.begin(), bytes.end()};
}

std::optional<DriverState> unpack(std::span<const std::byte> bytes, std::uint64_t features,
                                  unsigned pairs, const DriverState& fresh) {
  Record record;
  if (bytes.size() != sizeof record) return std::nullopt;
  std::memcpy(&record, bytes.data(), sizeof record);
  if (record.version != version || record.size != sizeof record) return std::nullopt;
  if (record.features != features || record.pairs < 1 || record.pairs > pairs) return std::nullopt;
  DriverState state = fresh;
  state.pairs = record.pairs;
  if (record.has_mac != 0) {
    if ((record.mac[0] & 1) != 0) return std::nullopt;
    state.mac = record.mac;
    state.filter.set_own(state.mac);
  }
  state.filter.restore(record.filter);
  state.hash = unpacked(record.hash);
  if (!is_valid(state.hash)) return std::nullopt;
  if (record.has_rss != 0) {
    state.rss = rss_of(record);
    if (!is_valid(*state.rss, pairs)) return std::nullopt;
  }
  state.receive = {record.receive_packets, record.receive_usecs};
  state.transmit = {record.transmit_packets, record.transmit_usecs};
  return state;
}

}  // namespace millrace::net
