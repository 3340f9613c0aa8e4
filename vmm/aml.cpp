#include "vmm/aml.hpp"

#include "base/check.hpp"

namespace millrace::vmm::aml {

namespace {

// Opcodes, ACPI 6.5 §20.3.
constexpr std::uint8_t zero_op = 0x00, one_op = 0x01, name_op = 0x08, byte_prefix = 0x0a,
                       word_prefix = 0x0b, double_prefix = 0x0c, string_prefix = 0x0d,
                       quad_prefix = 0x0e, scope_op = 0x10, buffer_op = 0x11, package_op = 0x12,
                       method_op = 0x14, dual_name_prefix = 0x2e, multi_name_prefix = 0x2f,
                       extended_prefix = 0x5b, local_op = 0x60, argument_op = 0x68, store_op = 0x70,
                       add_op = 0x72, subtract_op = 0x74, shift_left_op = 0x79, and_op = 0x7b,
                       notify_op = 0x86, wide_field_op = 0x8f, both_op = 0x90, not_op = 0x92,
                       less_op = 0x95, if_op = 0xa0, return_op = 0xa4;
constexpr std::uint8_t region_op = 0x80, field_op = 0x81, device_op = 0x82;  // after the prefix
constexpr std::uint8_t space_ports = 1, field_bytes = 1;  // byte access, no lock, preserve

Bytes byte(unsigned value) {
  return Bytes(1, static_cast<char>(value));
}

Bytes little_endian(std::uint64_t value, unsigned size) {
  Bytes bytes;
  for (unsigned i = 0; i < size; ++i) bytes += byte(value >> (8 * i) & 0xff);
  return bytes;
}

// §20.2.4: a length that counts itself, in 1 to 4 bytes.
Bytes with_length(const Bytes& content) {
  unsigned extra = 0;  // bytes after the first
  if (content.size() + 1 > 0x3f) extra = 1;
  if (extra == 1 && content.size() + 2 > 0xfff) extra = 2;
  if (extra == 2 && content.size() + 3 > 0xf'ffff) extra = 3;
  const auto length = content.size() + 1 + extra;
  CHECK(length < 1u << 28);
  if (extra == 0) return byte(static_cast<unsigned>(length)) + content;
  return byte(static_cast<unsigned>(extra << 6 | (length & 0xf))) +
         little_endian(length >> 4, extra) + content;
}

Bytes segment(std::string_view text) {
  CHECK(!text.empty() && text.size() <= 4);
  Bytes bytes{text};
  bytes.resize(4, '_');
  return bytes;
}

// §6.4.3.5: an address space descriptor. All windows are decoded positively, with fixed ends.
Bytes address_space(std::uint8_t tag, unsigned width, std::uint8_t type, std::uint8_t type_flags,
                    std::uint64_t first, std::uint64_t last, std::uint8_t own = 0) {
  constexpr std::uint8_t fixed_ends = 3 << 2;
  const Bytes body = byte(type) + byte(fixed_ends | own) + byte(type_flags) +
                     little_endian(0, width) + little_endian(first, width) +
                     little_endian(last, width) + little_endian(0, width) +
                     little_endian(last - first + 1, width);
  return byte(tag) + little_endian(body.size(), 2) + body;
}

constexpr std::uint8_t word_space = 0x88, double_space = 0x87, quad_space = 0x8a;
constexpr std::uint8_t type_memory = 0, type_ports = 1, type_buses = 2;
constexpr std::uint8_t writable = 1, cacheable = 1 << 1, prefetchable = 3 << 1, entire_range = 3;

}  // namespace

Bytes join(std::initializer_list<Bytes> pieces) {
  Bytes all;
  for (const auto& piece : pieces) all += piece;
  return all;
}

Bytes path(std::string_view text) {
  Bytes prefix, segments;
  if (text.starts_with('\\')) {
    prefix = "\\";
    text.remove_prefix(1);
  }
  unsigned count = 0;
  while (!text.empty()) {
    const auto part = text.substr(0, text.find('.'));
    text.remove_prefix(std::min(text.size(), part.size() + 1));
    segments += segment(part);
    ++count;
  }
  CHECK(count > 0 && count < 256);
  if (count == 2) prefix += byte(dual_name_prefix);
  if (count > 2) prefix += byte(multi_name_prefix) + byte(count);
  return prefix + segments;
}

Bytes integer(std::uint64_t value) {
  if (value == 0) return byte(zero_op);
  if (value == 1) return byte(one_op);
  if (value <= 0xff) return byte(byte_prefix) + little_endian(value, 1);
  if (value <= 0xffff) return byte(word_prefix) + little_endian(value, 2);
  if (value <= 0xffff'ffff) return byte(double_prefix) + little_endian(value, 4);
  return byte(quad_prefix) + little_endian(value, 8);
}

Bytes string(std::string_view text) {
  return byte(string_prefix) + Bytes{text} + byte(0);
}

// §19.3.4: three letters of five bits, four hexadecimal digits, the whole big endian.
Bytes eisa_id(std::string_view text) {
  CHECK(text.size() == 7);
  std::uint32_t id = 0;
  for (const char letter : text.substr(0, 3)) {
    CHECK(letter >= 'A' && letter <= 'Z');
    id = id << 5 | static_cast<std::uint32_t>(letter - '@');
  }
  id = id << 16 | static_cast<std::uint32_t>(std::stoul(Bytes{text.substr(3)}, nullptr, 16));
  return byte(double_prefix) + little_endian(__builtin_bswap32(id), 4);
}

Bytes package(std::initializer_list<Bytes> elements) {
  return byte(package_op) +
         with_length(byte(static_cast<unsigned>(elements.size())) + join(elements));
}

Bytes buffer(std::string_view bytes) {
  return byte(buffer_op) + with_length(integer(bytes.size()) + Bytes{bytes});
}

Bytes name(std::string_view name, const Bytes& value) {
  return byte(name_op) + path(name) + value;
}

Bytes scope(std::string_view name, const Bytes& content) {
  return byte(scope_op) + with_length(path(name) + content);
}

Bytes device(std::string_view name, const Bytes& content) {
  return byte(extended_prefix) + byte(device_op) + with_length(path(name) + content);
}

Bytes method(std::string_view name, unsigned arguments, const Bytes& content, bool serialized) {
  CHECK(arguments <= 7);
  const auto flags = arguments | (serialized ? 8u : 0u);
  return byte(method_op) + with_length(path(name) + byte(flags) + content);
}

Bytes port_field(std::string_view region, std::string_view field, std::uint16_t port) {
  constexpr unsigned field_bits = 8;
  return byte(extended_prefix) + byte(region_op) + path(region) + byte(space_ports) +
         integer(port) + integer(1) + byte(extended_prefix) + byte(field_op) +
         with_length(path(region) + byte(field_bytes) + path(field) + byte(field_bits));
}

Bytes port_words(std::string_view region, std::uint16_t port,
                 std::initializer_list<std::string_view> fields) {
  constexpr unsigned double_access = 3;
  constexpr std::uint64_t bytes = 4;
  Bytes list;
  for (const auto field : fields) list += path(field) + byte(8 * bytes);
  return byte(extended_prefix) + byte(region_op) + path(region) + byte(space_ports) +
         integer(port) + integer(bytes * fields.size()) + byte(extended_prefix) + byte(field_op) +
         with_length(path(region) + byte(double_access) + list);
}

Bytes wide_field(const Bytes& buffer, std::uint64_t at, std::string_view name) {
  return byte(wide_field_op) + buffer + integer(at) + path(name);
}

Bytes local(unsigned index) {
  CHECK(index < 8);
  return byte(local_op + index);
}

Bytes argument(unsigned index) {
  CHECK(index < 7);
  return byte(argument_op + index);
}

Bytes store(const Bytes& value, const Bytes& target) {
  return byte(store_op) + value + target;
}

Bytes bit_and(const Bytes& left, const Bytes& right) {
  return byte(and_op) + left + right + byte(zero_op);  // the result goes nowhere else
}

Bytes both(const Bytes& left, const Bytes& right) {
  return byte(both_op) + left + right;
}

Bytes negated(const Bytes& value) {
  return byte(not_op) + value;
}

Bytes less(const Bytes& left, const Bytes& right) {
  return byte(less_op) + left + right;
}

Bytes shift_left(const Bytes& value, const Bytes& count, const Bytes& target) {
  return byte(shift_left_op) + value + count + target;
}

Bytes add(const Bytes& left, const Bytes& right, const Bytes& target) {
  return byte(add_op) + left + right + target;
}

Bytes subtract(const Bytes& left, const Bytes& right, const Bytes& target) {
  return byte(subtract_op) + left + right + target;
}

Bytes if_then(const Bytes& condition, const Bytes& content) {
  return byte(if_op) + with_length(condition + content);
}

Bytes notify(const Bytes& object, std::uint64_t value) {
  return byte(notify_op) + object + integer(value);
}

Bytes give_back(const Bytes& value) {
  return byte(return_op) + value;
}

Bytes resources(std::initializer_list<Bytes> descriptors) {
  constexpr unsigned end_tag = 0x79;  // with a checksum of 0: not computed
  return buffer(join(descriptors) + byte(end_tag) + byte(0));
}

Bytes port_range(std::uint16_t start, std::uint8_t size) {
  constexpr unsigned tag = 0x47, decodes_16_bits = 1, alignment = 1;
  return byte(tag) + byte(decodes_16_bits) + little_endian(start, 2) + little_endian(start, 2) +
         byte(alignment) + byte(size);
}

Bytes edge_interrupt(std::uint32_t pin) {
  constexpr unsigned tag = 0x89, consumer_edge_high_exclusive = 3, one = 1;
  return byte(tag) + little_endian(6, 2) + byte(consumer_edge_high_exclusive) + byte(one) +
         little_endian(pin, 4);
}

Bytes bus_window(std::uint16_t first, std::uint16_t last) {
  return address_space(word_space, 2, type_buses, 0, first, last);
}

Bytes port_window(std::uint16_t first, std::uint16_t last) {
  return address_space(word_space, 2, type_ports, entire_range, first, last);
}

Bytes memory_window(std::uint32_t start, std::uint32_t size) {
  return address_space(double_space, 4, type_memory, writable, start,
                       std::uint64_t{start} + size - 1);
}

Bytes wide_memory_window(std::uint64_t start, std::uint64_t size) {
  return address_space(quad_space, 8, type_memory, writable | prefetchable, start,
                       start + size - 1);
}

Bytes wide_memory(std::uint64_t start, std::uint64_t size) {
  constexpr std::uint8_t consumer = 1;
  return address_space(quad_space, 8, type_memory, writable | cacheable, start, start + size - 1,
                       consumer);
}

Bytes fixed_memory(std::uint32_t start, std::uint32_t size) {
  constexpr unsigned tag = 0x86, read_write = 1;
  return byte(tag) + little_endian(9, 2) + byte(read_write) + little_endian(start, 4) +
         little_endian(size, 4);
}

}  // namespace millrace::vmm::aml
