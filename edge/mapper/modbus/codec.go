package modbus

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/holdfast-edge/holdfast/edge/mapper"
)

// decode makes a value of a point's registers, or of one that holds 0 or 1 for a
// coil or an input. It is the text that edgecore takes for the property's type.
func (p *point) decode(registers []uint16) (string, error) {
	if len(registers) != int(p.count) {
		return "", fmt.Errorf("%d registers were read, not %d", len(registers), p.count)
	}
	b := p.bytes(registers)
	switch p.kind {
	case boolean:
		word := binary.BigEndian.Uint16(b)
		if p.bit >= 0 {
			word = word >> p.bit & 1
		}
		return p.show(word != 0)
	case signed:
		return p.showInt(toSigned(b))
	case unsigned:
		return p.showUint(toUnsigned(b))
	case float:
		if len(b) == 4 {
			return p.showFloat(float64(math.Float32frombits(binary.BigEndian.Uint32(b))), 32)
		}
		return p.showFloat(math.Float64frombits(binary.BigEndian.Uint64(b)), 64)
	case text:
		if i := bytes.IndexByte(b, 0); i >= 0 {
			b = b[:i]
		}
		if !utf8.Valid(b) {
			return "", errors.New("the registers hold no UTF-8")
		}
		return string(b), nil
	default:
		return base64.StdEncoding.EncodeToString(b), nil
	}
}

// bytes puts the registers in order, high byte first.
func (p *point) bytes(registers []uint16) []byte {
	ordered := slices.Clone(registers)
	if p.littleW && p.kind != text && p.kind != raw {
		slices.Reverse(ordered)
	}
	b := make([]byte, 0, 2*len(ordered))
	for _, r := range ordered {
		if p.littleB {
			r = r<<8 | r>>8
		}
		b = binary.BigEndian.AppendUint16(b, r)
	}
	return b
}

// registers is the reverse of bytes.
func (p *point) registers(b []byte) []uint16 {
	out := make([]uint16, len(b)/2)
	for i := range out {
		out[i] = binary.BigEndian.Uint16(b[2*i:])
		if p.littleB {
			out[i] = out[i]<<8 | out[i]>>8
		}
	}
	if p.littleW && p.kind != text && p.kind != raw {
		slices.Reverse(out)
	}
	return out
}

func toUnsigned(b []byte) (n uint64) {
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n
}

func toSigned(b []byte) int64 {
	unused := 64 - 8*len(b)
	return int64(toUnsigned(b)<<unused) >> unused
}

func (p *point) show(on bool) (string, error) {
	switch p.as {
	case mapper.Int, mapper.Float, mapper.Double:
		if on {
			return "1", nil
		}
		return "0", nil
	}
	return strconv.FormatBool(on), nil
}

func (p *point) plain() bool { return p.scale == 1 && p.add == 0 }

func (p *point) showInt(n int64) (string, error) {
	switch {
	case p.as == mapper.Boolean:
		return strconv.FormatBool(n != 0), nil
	case p.plain():
		return strconv.FormatInt(n, 10), nil
	}
	return p.showScaled(float64(n))
}

func (p *point) showUint(n uint64) (string, error) {
	switch {
	case p.as == mapper.Boolean:
		return strconv.FormatBool(n != 0), nil
	case p.plain() && p.as == mapper.Int && n > math.MaxInt64:
		return "", fmt.Errorf("the device says %d, which an INT cannot hold", n)
	case p.plain():
		return strconv.FormatUint(n, 10), nil
	}
	return p.showScaled(float64(n))
}

// showScaled shows a whole number of the device with the decimals that scale and
// valueOffset give it: 219 by 0.1 is 21.9.
func (p *point) showScaled(n float64) (string, error) {
	x := n*p.scale + p.add
	if p.as == mapper.Int {
		return whole(x)
	}
	if p.decimals > 17 {
		return finite(x, 64)
	}
	s := strconv.FormatFloat(x, 'f', p.decimals, 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	if s == "-0" {
		s = "0"
	}
	return s, nil
}

func (p *point) showFloat(x float64, bits int) (string, error) {
	if !p.plain() {
		x, bits = x*p.scale+p.add, 64
		if p.count == 2 { // a float of 32 bits has no more than 7 digits
			x, _ = strconv.ParseFloat(strconv.FormatFloat(x, 'g', 7, 64), 64)
		}
	}
	if p.as == mapper.Int {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return "", errors.New("the device says that it has no number")
		}
		return whole(x)
	}
	return finite(x, bits)
}

func whole(x float64) (string, error) {
	x = math.Round(x)
	if !(x >= -1<<63 && x < 1<<63) {
		return "", fmt.Errorf("the device says %g, which an INT cannot hold", x)
	}
	return strconv.FormatInt(int64(x), 10), nil
}

func finite(x float64, bits int) (string, error) {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return "", errors.New("the device says that it has no number")
	}
	format := byte('f')
	if a := math.Abs(x); a != 0 && (a < 1e-6 || a >= 1e15) {
		format = 'g'
	}
	return strconv.FormatFloat(x, format, -1, bits), nil
}

// encode makes registers of a desired value. For a bit of a register it makes the
// bit alone; the rest of the register must be read. An error says what the register
// cannot hold.
func (p *point) encode(value string) ([]uint16, error) {
	switch p.kind {
	case boolean:
		on, err := truth(value)
		if err != nil {
			return nil, err
		}
		word := uint16(0)
		if on {
			word = 1 << max(p.bit, 0)
		}
		return p.registers(binary.BigEndian.AppendUint16(nil, word)), nil
	case text:
		return p.padded([]byte(value), "text")
	case raw:
		b, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			return nil, errors.New("it is not base64")
		}
		return p.padded(b, "bytes")
	}
	if p.as == mapper.Boolean {
		on, err := truth(value)
		if err != nil {
			return nil, err
		}
		value = "0"
		if on {
			value = "1"
		}
	}
	b, err := p.encodeNumber(strings.TrimSpace(value))
	if err != nil {
		return nil, err
	}
	return p.registers(b), nil
}

func truth(value string) (bool, error) {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, errors.New("it is neither true nor false")
}

func (p *point) padded(b []byte, what string) ([]uint16, error) {
	size := 2 * int(p.count)
	if len(b) > size {
		return nil, fmt.Errorf("%s of %d bytes does not fit into %d registers", what, len(b), p.count)
	}
	return p.registers(append(slices.Clone(b), make([]byte, size-len(b))...)), nil
}

func (p *point) encodeNumber(value string) ([]byte, error) {
	bits := 16 * int(p.count)
	low := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n)[8-bits/8:] }
	if p.plain() { // without a way through a float
		switch p.kind {
		case signed:
			if n, err := strconv.ParseInt(value, 10, bits); err == nil {
				return low(uint64(n)), nil
			}
		case unsigned:
			if n, err := strconv.ParseUint(value, 10, bits); err == nil {
				return low(n), nil
			}
		}
	}
	x, err := strconv.ParseFloat(value, 64)
	if err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
		return nil, errors.New("it is not a number")
	}
	x = (x - p.add) / p.scale
	if p.kind == float {
		if bits == 32 {
			if f := float32(x); !math.IsInf(float64(f), 0) {
				return binary.BigEndian.AppendUint32(nil, math.Float32bits(f)), nil
			}
			return nil, errors.New("it does not fit into a float of 32 bits")
		}
		if math.IsInf(x, 0) {
			return nil, errors.New("it does not fit into a float of 64 bits")
		}
		return binary.BigEndian.AppendUint64(nil, math.Float64bits(x)), nil
	}
	n := math.Round(x)
	if math.Abs(x-n) > 1e-6*max(1, math.Abs(x)) {
		if p.plain() {
			return nil, errors.New("the register holds whole numbers alone")
		}
		return nil, fmt.Errorf("the register cannot hold it: it goes in steps of %g", p.scale)
	}
	least, most := 0.0, math.Ldexp(1, bits) // most is the first that is too much
	if p.kind == signed {
		least, most = -math.Ldexp(1, bits-1), math.Ldexp(1, bits-1)
	}
	if n < least || n >= most {
		return nil, fmt.Errorf("it would be %.0f in a register of %d bits", n, bits)
	}
	if p.kind == signed {
		return low(uint64(int64(n))), nil
	}
	return low(uint64(n)), nil
}
