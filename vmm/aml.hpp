// Encoders for the few pieces of ACPI machine language (AML) that the platform's DSDT is made of.
// Each answers bytes to be put inside another piece. ACPI 6.5 §20.2; resource descriptors §6.4.
//
// Names are four characters; a path may begin with '\' and have parts separated by '.'.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace millrace::vmm::aml {

using Bytes = std::string;

// Joins pieces.
[[nodiscard]] Bytes join(std::initializer_list<Bytes> pieces);

// Data.
[[nodiscard]] Bytes path(std::string_view text);
[[nodiscard]] Bytes integer(std::uint64_t value);
[[nodiscard]] Bytes string(std::string_view text);
// A compressed identifier such as "PNP0A08".
[[nodiscard]] Bytes eisa_id(std::string_view text);
[[nodiscard]] Bytes package(std::initializer_list<Bytes> elements);
[[nodiscard]] Bytes buffer(std::string_view bytes);

// Named things.
[[nodiscard]] Bytes name(std::string_view name, const Bytes& value);
[[nodiscard]] Bytes scope(std::string_view name, const Bytes& content);
[[nodiscard]] Bytes device(std::string_view name, const Bytes& content);
[[nodiscard]] Bytes method(std::string_view name, unsigned arguments, const Bytes& content,
                           bool serialized = false);
// One byte-wide field that covers a region of one port.
[[nodiscard]] Bytes port_field(std::string_view region, std::string_view field, std::uint16_t port);

// Fields of 32 bits, one after the other, that cover a region of ports from `port` on.
[[nodiscard]] Bytes port_words(std::string_view region, std::uint16_t port,
                               std::initializer_list<std::string_view> fields);
// A field of 64 bits in a buffer, from that byte on.
[[nodiscard]] Bytes wide_field(const Bytes& buffer, std::uint64_t byte, std::string_view name);

// Statements and expressions. A method without arguments is called by its path.
[[nodiscard]] Bytes local(unsigned index);
[[nodiscard]] Bytes argument(unsigned index);
[[nodiscard]] Bytes store(const Bytes& value, const Bytes& target);
[[nodiscard]] Bytes bit_and(const Bytes& left, const Bytes& right);
[[nodiscard]] Bytes both(const Bytes& left, const Bytes& right);
[[nodiscard]] Bytes negated(const Bytes& value);
[[nodiscard]] Bytes less(const Bytes& left, const Bytes& right);
[[nodiscard]] Bytes shift_left(const Bytes& value, const Bytes& count, const Bytes& target);
[[nodiscard]] Bytes add(const Bytes& left, const Bytes& right, const Bytes& target);
[[nodiscard]] Bytes subtract(const Bytes& left, const Bytes& right, const Bytes& target);
[[nodiscard]] Bytes if_then(const Bytes& condition, const Bytes& content);
[[nodiscard]] Bytes notify(const Bytes& object, std::uint64_t value);
[[nodiscard]] Bytes give_back(const Bytes& value);

// Resource descriptors, to be put into resources().
[[nodiscard]] Bytes resources(std::initializer_list<Bytes> descriptors);
[[nodiscard]] Bytes port_range(std::uint16_t start, std::uint8_t size);
[[nodiscard]] Bytes edge_interrupt(std::uint32_t pin);
// What a host bridge passes on: buses, ports, memory.
[[nodiscard]] Bytes bus_window(std::uint16_t first, std::uint16_t last);
[[nodiscard]] Bytes port_window(std::uint16_t first, std::uint16_t last);
[[nodiscard]] Bytes memory_window(std::uint32_t start, std::uint32_t size);
[[nodiscard]] Bytes wide_memory_window(std::uint64_t start, std::uint64_t size);
// Memory that a device itself takes.
[[nodiscard]] Bytes fixed_memory(std::uint32_t start, std::uint32_t size);
// Memory that a memory device is.
[[nodiscard]] Bytes wide_memory(std::uint64_t start, std::uint64_t size);

}  // namespace millrace::vmm::aml
