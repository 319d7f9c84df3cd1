package dmi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Pack encodes a JSON object as KubeEdge's edgecore does: text as StringValue, true
// and false as BoolValue, numbers as FloatValue, objects as Struct, lists as
// ListValue. A whole number that 32 bits of a float cannot hold goes as Int64Value,
// which mappers understand as well. null is left out. The result is never nil, and
// neither is its map: mappers do not look.
func Pack(object []byte) (*CustomizedValue, error) {
	packed := &CustomizedValue{Data: map[string]*anypb.Any{}}
	if len(bytes.TrimSpace(object)) == 0 {
		return packed, nil
	}
	decoder := json.NewDecoder(bytes.NewReader(object))
	decoder.UseNumber()
	var fields map[string]any
	if err := decoder.Decode(&fields); err != nil {
		return packed, fmt.Errorf("it is not a JSON object: %w", err)
	}
	for name, value := range fields {
		message, err := wrap(value)
		if err != nil {
			return packed, fmt.Errorf("field %s: %w", name, err)
		}
		if message == nil {
			continue
		}
		if packed.Data[name], err = anypb.New(message); err != nil {
			return packed, fmt.Errorf("field %s: %w", name, err)
		}
	}
	return packed, nil
}

func wrap(value any) (proto.Message, error) {
	switch v := value.(type) {
	case nil:
		return nil, nil
	case string:
		return wrapperspb.String(v), nil
	case bool:
		return wrapperspb.Bool(v), nil
	case json.Number:
		if n, err := strconv.ParseInt(v.String(), 10, 64); err == nil && int64(float32(n)) != n {
			return wrapperspb.Int64(n), nil
		}
		f, err := strconv.ParseFloat(v.String(), 32)
		if err != nil {
			return nil, fmt.Errorf("the number %s is too large", v)
		}
		return wrapperspb.Float(float32(f)), nil
	case map[string]any:
		s, err := structpb.NewStruct(plain(v).(map[string]any))
		return s, err
	case []any:
		l, err := structpb.NewList(plain(v).([]any))
		return l, err
	}
	return nil, fmt.Errorf("%T cannot be sent", value)
}

// plain makes numbers what structpb takes.
func plain(value any) any {
	switch v := value.(type) {
	case json.Number:
		f, _ := v.Float64() // what overflows becomes infinite, and is refused later
		return f
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, field := range v {
			out[name] = plain(field)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, element := range v {
			out[i] = plain(element)
		}
		return out
	}
	return value
}

// Unpack is the reverse of Pack: fields are string, bool, json.Number,
// map[string]any or []any. It takes every kind of wrapper; a field of an unknown
// type, or one that is not a number of JSON, is left out.
func Unpack(packed *CustomizedValue) map[string]any {
	fields := make(map[string]any, len(packed.GetData()))
	for name, value := range packed.GetData() {
		message, err := value.UnmarshalNew()
		if err != nil {
			continue
		}
		if v := unwrap(message); v != nil {
			fields[name] = v
		}
	}
	return fields
}

func unwrap(message proto.Message) any {
	switch m := message.(type) {
	case *wrapperspb.StringValue:
		return m.Value
	case *wrapperspb.BoolValue:
		return m.Value
	case *wrapperspb.Int32Value:
		return json.Number(strconv.FormatInt(int64(m.Value), 10))
	case *wrapperspb.Int64Value:
		return json.Number(strconv.FormatInt(m.Value, 10))
	case *wrapperspb.UInt32Value:
		return json.Number(strconv.FormatUint(uint64(m.Value), 10))
	case *wrapperspb.UInt64Value:
		return json.Number(strconv.FormatUint(m.Value, 10))
	case *wrapperspb.FloatValue:
		return number(float64(m.Value), 32) // the shortest text: 0.1 stays 0.1
	case *wrapperspb.DoubleValue:
		return number(m.Value, 64)
	case *structpb.Struct:
		return numbered(m.AsMap())
	case *structpb.ListValue:
		return numbered(m.AsSlice())
	}
	return nil
}

func number(f float64, bits int) any {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil
	}
	return json.Number(strconv.FormatFloat(f, 'f', -1, bits))
}

func numbered(value any) any {
	switch v := value.(type) {
	case float64:
		return number(v, 64)
	case map[string]any:
		for name, field := range v {
			v[name] = numbered(field)
		}
	case []any:
		for i, element := range v {
			v[i] = numbered(element)
		}
	}
	return value
}
