// JSON values and JSON schemas as Exprs.
//
// What is written: one space at most behind : and , and no other white space; members in the
// schema's order; no members beyond the schema's; every string valid Unicode. Values that the
// schema says nothing of nest at most kFreeDepth deep, a json_object kObjectDepth.
//
// Keywords: type (one or a list), properties, required, additionalProperties (false, or a schema
// where there are no properties), items, minItems, maxItems, enum, const, anyOf, oneOf (read as
// anyOf), allOf of one schema, $ref to #/$defs/NAME or #/definitions/NAME without recursion;
// pattern, or format (formats.h), or minLength and maxLength; minimum, maximum and their exclusive
// forms. Annotations are passed over (title, description, default, examples, deprecated, readOnly,
// writeOnly, $schema, $id, $comment, $defs, definitions, discriminator). Every other keyword is
// unsupported, with its name and path.
#pragma once

#include <string>
#include <string_view>

#include "lib/core/result.h"
#include "lib/text/grammar/expr.h"

namespace mpinfer::text::grammar {

constexpr int kObjectDepth = 6;
constexpr int kFreeDepth = 4;
constexpr int kMaxSchemaDepth = 32;  // schemas inside schemas, $ref followed
constexpr size_t kMaxSchemaBytes = 64 << 10;
constexpr int32_t kMaxItems = 1024;
constexpr int32_t kMaxLength = 4096;

ExprPtr json_object(int depth);
ExprPtr json_value(int depth);  // depth 0: no objects and arrays
ExprPtr json_string();
ExprPtr json_number(int32_t max_digits);  // before and behind the point; -1: no limit
ExprPtr json_integer(int32_t max_digits);
// min to max items; max -1: no limit.
ExprPtr json_array(const ExprPtr& item, int32_t min, int32_t max);
ExprPtr comma();
ExprPtr colon();
ExprPtr json_character();

// schema: a JSON text. param: the field that is named in a refusal.
Expected<ExprPtr> read_schema(std::string_view schema, const std::string& param);

}  // namespace mpinfer::text::grammar
