package modbus

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/edge/mapper"
)

// Defaults and bounds of the configuration.
const (
	defaultPort    = 502
	defaultTimeout = time.Second
	minTimeout     = 50 * time.Millisecond
	maxTimeout     = 30 * time.Second
	defaultCollect = time.Second
	minCollect     = 10 * time.Millisecond
	maxRegisters   = 125  // of one request
	maxWritten     = 123  // registers of one write
	maxBits        = 2000 // coils or inputs of one request
	maxProperties  = 256
)

// endpoint is where a device is reached. Devices that share one share a connection.
type endpoint struct {
	rtu     bool // RTU frames over TCP
	address string
}

func (e endpoint) url() string {
	if e.rtu {
		return "rtuovertcp://" + e.address
	}
	return "tcp://" + e.address
}

// config is a device.
type config struct {
	endpoint
	unit    uint8
	timeout time.Duration
	gap     int // registers between two properties that are read along
	points  []point
}

// table is one of the four kinds of what a device holds.
type table int

const (
	coil table = iota
	discreteInput
	inputRegister
	holdingRegister
)

func (t table) String() string {
	return [...]string{"coil", "discreteInput", "inputRegister", "holdingRegister"}[t]
}

func (t table) bits() bool { return t == coil || t == discreteInput }

// kind is how a value lies in registers.
type kind int

const (
	boolean kind = iota
	signed
	unsigned
	float
	text
	raw
)

// point is one property. It is comparable: equal points are the same in every way.
type point struct {
	name     string
	as       mapper.Type
	table    table
	address  uint16
	count    uint16 // registers, or 1
	kind     kind
	bit      int8 // of a register; -1: all of it
	littleB  bool // the low byte of each register comes first
	littleW  bool // the low register comes first
	scale    float64
	add      float64
	decimals int // of scale and add
	writable bool
	multiple bool // write with 15 or 16 even where 5 or 6 would do
	collect  time.Duration
	desired  string
}

func (p *point) end() int { return int(p.address) + int(p.count) }

// parse reads a device's configuration. Properties that are wrong are left out and
// named in problems; err says why the device cannot be served at all.
func parse(d mapper.Device) (c config, problems []error, err error) {
	f := fields(d.Config)
	if nested := f.object("tcp"); nested != nil { // as in older Devices of KubeEdge
		f = f.with(nested)
	}
	if c.endpoint, err = parseEndpoint(f); err != nil {
		return c, nil, err
	}
	unit, err := f.whole(1, 0, 255, "unit", "unitid", "slaveid")
	if err != nil {
		return c, nil, err
	}
	c.unit = uint8(unit)
	timeout, err := f.whole(int64(defaultTimeout/time.Millisecond), int64(minTimeout/time.Millisecond), int64(maxTimeout/time.Millisecond), "timeout")
	if err != nil {
		return c, nil, err
	}
	c.timeout = time.Duration(timeout) * time.Millisecond
	gap, err := f.whole(0, 0, maxRegisters-1, "readgap")
	if err != nil {
		return c, nil, err
	}
	c.gap = int(gap)
	for i, property := range d.Properties {
		if i == maxProperties {
			problems = append(problems, fmt.Errorf("a device has %d properties at most; the rest is not read", maxProperties))
			break
		}
		if len(property.Config) == 0 {
			continue // not a mapper's
		}
		p, err := parsePoint(f, property)
		if err != nil {
			problems = append(problems, fmt.Errorf("property %s: %w", property.Name, err))
			continue
		}
		c.points = append(c.points, p)
	}
	return c, problems, nil
}

func parseEndpoint(f fieldSet) (e endpoint, err error) {
	address, err := f.text("address")
	if err != nil {
		return e, err
	}
	host, err := f.text("host", "ip")
	if err != nil {
		return e, err
	}
	port, err := f.whole(defaultPort, 1, 65535, "port", "tcpport")
	if err != nil {
		return e, err
	}
	switch {
	case address == "" && host == "":
		if serial, _ := f.text("serialport", "serialname"); serial != "" || f.object("com") != nil {
			return e, errors.New("serial ports are not served: put a gateway that speaks TCP before the device, and name it by address (transport rtuovertcp for plain RTU frames)")
		}
		return e, errors.New(`configData names no address, such as address: "192.0.2.7:502"`)
	case address == "":
		address = net.JoinHostPort(host, strconv.FormatInt(port, 10))
	default:
		if _, _, err := net.SplitHostPort(address); err != nil {
			address = net.JoinHostPort(strings.Trim(address, "[]"), strconv.FormatInt(port, 10))
		}
	}
	h, p, err := net.SplitHostPort(address)
	if n, nerr := strconv.ParseUint(p, 10, 16); err != nil || nerr != nil || n == 0 || h == "" || len(h) > 253 || strings.ContainsAny(h, " /\t\r\n\x00") {
		return e, fmt.Errorf("address %q is not of the form HOST:PORT", address)
	}
	e.address = address
	transport, err := f.text("transport", "communicatemode", "mode")
	if err != nil {
		return e, err
	}
	switch strings.ToLower(transport) {
	case "", "tcp":
	case "rtuovertcp", "rtu-over-tcp", "rtu":
		e.rtu = true
	default:
		return e, fmt.Errorf("transport %q is neither tcp nor rtuovertcp", transport)
	}
	return e, nil
}

func parsePoint(device fieldSet, property mapper.Property) (p point, err error) {
	f := fields(property.Config)
	p = point{name: property.Name, as: property.Type, writable: property.Writable, desired: property.Desired, bit: -1}
	if p.table, err = parseTable(f); err != nil {
		return p, err
	}
	address, err := f.whole(-1, 0, 65535, "offset", "register address", "registeraddress")
	if err != nil {
		return p, err
	}
	if address < 0 {
		return p, errors.New("configData names no offset: the number of the first register, from 0")
	}
	p.address = uint16(address)
	count, err := f.whole(0, 0, maxRegisters, "limit", "count")
	if err != nil {
		return p, err
	}
	p.count = uint16(count)
	bit, err := f.whole(-1, 0, 15, "bit")
	if err != nil {
		return p, err
	}
	p.bit = int8(bit)
	if p.littleB, err = parseOrder(f, device, "byteorder", "isswap"); err != nil {
		return p, err
	}
	if p.littleW, err = parseOrder(f, device, "wordorder", "isregisterswap"); err != nil {
		return p, err
	}
	dataType, err := f.text("datatype", "type")
	if err != nil {
		return p, err
	}
	if err := p.setType(strings.ToLower(dataType)); err != nil {
		return p, err
	}
	if err := p.setScale(f); err != nil {
		return p, err
	}
	if p.multiple, err = f.flag("writemultiple"); err != nil {
		return p, err
	}
	p.collect = property.Collect
	if p.collect == 0 {
		p.collect = defaultCollect
	}
	p.collect = max(p.collect, minCollect)
	p.writable = p.writable && (p.table == coil || p.table == holdingRegister)
	return p, p.fits()
}

func parseTable(f fieldSet) (table, error) {
	name, err := f.text("register", "registertype")
	if err != nil {
		return 0, err
	}
	switch strings.ToLower(name) {
	case "coil", "coilregister":
		return coil, nil
	case "discreteinput", "discreteinputregister":
		return discreteInput, nil
	case "input", "inputregister":
		return inputRegister, nil
	case "holding", "holdingregister":
		return holdingRegister, nil
	case "":
		return 0, errors.New("configData names no register: coil, discreteInput, inputRegister or holdingRegister")
	}
	return 0, fmt.Errorf("register %q is none of coil, discreteInput, inputRegister and holdingRegister", name)
}

// parseOrder says whether the low part comes first: by a word of ours, or by
// KubeEdge's flag; the property's own before the device's.
func parseOrder(property, device fieldSet, word, flag string) (little bool, err error) {
	for _, f := range []fieldSet{property, device} {
		order, err := f.text(word)
		if err != nil {
			return false, err
		}
		switch strings.ToLower(order) {
		case "big", "bigendian", "high", "highfirst":
			return false, nil
		case "little", "littleendian", "low", "lowfirst":
			return true, nil
		case "":
		default:
			return false, fmt.Errorf("%s %q is neither big nor little", word, order)
		}
		if f[flag] != nil {
			return f.flag(flag)
		}
	}
	return false, nil
}

// setType finds out how the value lies in its registers: as dataType says, or as
// KubeEdge's mappers take a limit of 1, 2 or 4 registers.
func (p *point) setType(dataType string) error {
	if p.table.bits() {
		p.kind, p.bit = boolean, -1
		if p.count > 1 {
			return fmt.Errorf("a %s holds one bit: limit must be 1", p.table)
		}
		p.count = 1
		return nil
	}
	size := uint16(0)
	switch dataType {
	case "int16":
		p.kind, size = signed, 1
	case "uint16":
		p.kind, size = unsigned, 1
	case "int32":
		p.kind, size = signed, 2
	case "uint32":
		p.kind, size = unsigned, 2
	case "int64":
		p.kind, size = signed, 4
	case "uint64":
		p.kind, size = unsigned, 4
	case "float32":
		p.kind, size = float, 2
	case "float64":
		p.kind, size = float, 4
	case "bit", "bool":
		p.kind, size = boolean, 1
	case "string":
		p.kind = text
	case "bytes":
		p.kind = raw
	case "", "int", "float", "double", "boolean":
		return p.guessType(dataType)
	default:
		return fmt.Errorf("dataType %q is not known: it may be int16, uint16, int32, uint32, int64, uint64, float32, float64, bit, string or bytes", dataType)
	}
	return p.sized(size)
}

func (p *point) guessType(dataType string) error {
	if dataType == "" {
		dataType = strings.ToLower(string(p.as))
	}
	switch {
	case dataType == "boolean" || p.bit >= 0:
		p.kind = boolean
		return p.sized(1)
	case dataType == "string" || dataType == "stream":
		p.kind = text
		return p.sized(0)
	case dataType == "bytes":
		p.kind = raw
		return p.sized(0)
	case p.count <= 1:
		p.kind = unsigned
		return p.sized(1)
	case dataType == "int":
		p.kind = signed
	default:
		p.kind = float
	}
	if p.count != 2 && p.count != 4 {
		return fmt.Errorf("a number has 1, 2 or 4 registers, not a limit of %d", p.count)
	}
	return p.sized(p.count)
}

// sized sets the number of registers: size, or for 0 what the limit says.
func (p *point) sized(size uint16) error {
	switch {
	case size == 0 && p.count == 0:
		return errors.New("text and bytes need a limit: the number of registers")
	case size == 0:
		return nil
	case p.count != 0 && p.count != size:
		return fmt.Errorf("this dataType has %d registers, and the limit is %d", size, p.count)
	}
	p.count = size
	return nil
}

func (p *point) setScale(f fieldSet) error {
	scale, decimals, err := f.decimal(1, "scale")
	if err != nil {
		return err
	}
	add, more, err := f.decimal(0, "valueoffset")
	if err != nil {
		return err
	}
	if scale == 0 {
		scale = 1 // as KubeEdge has it
	}
	p.scale, p.add, p.decimals = scale, add, max(decimals, more)
	return nil
}

// fits says what does not go together.
func (p *point) fits() error {
	number := p.kind == signed || p.kind == unsigned || p.kind == float
	switch {
	case p.end() > 65536:
		return fmt.Errorf("its registers end at %d, and 65535 is the last", p.end()-1)
	case p.bit >= 0 && p.kind != boolean:
		return errors.New("bit goes with dataType bit alone")
	case !number && (p.scale != 1 || p.add != 0):
		return errors.New("scale and valueOffset go with numbers alone")
	case p.as == mapper.Bytes && p.kind != raw:
		return errors.New("a property of type BYTES needs dataType bytes")
	case p.kind == raw && p.as != mapper.Bytes:
		return fmt.Errorf("dataType bytes does not go with a property of type %s", p.as)
	case p.kind == text && p.as != mapper.String && p.as != mapper.Stream:
		return fmt.Errorf("dataType string does not go with a property of type %s", p.as)
	case p.kind == float && p.as == mapper.Boolean:
		return errors.New("a property of type BOOLEAN cannot be read from a float")
	case p.writable && p.count > maxWritten:
		return fmt.Errorf("%d registers can be written at once, not %d", maxWritten, p.count)
	}
	return nil
}

// fieldSet is a configuration with its names in lower case: people write slaveID,
// slaveId and SlaveID.
type fieldSet map[string]any

func fields(config map[string]any) fieldSet {
	f := make(fieldSet, len(config))
	names := make([]string, 0, len(config))
	for name := range config {
		names = append(names, name)
	}
	slices.Sort(names) // of names that differ in case alone, always the same wins
	for _, name := range names {
		f[strings.ToLower(name)] = config[name]
	}
	return f
}

func (f fieldSet) with(more map[string]any) fieldSet {
	all := fields(more)
	for name, value := range f {
		all[name] = value
	}
	return all
}

func (f fieldSet) first(names []string) (string, any) {
	for _, name := range names {
		if f[name] != nil {
			return name, f[name]
		}
	}
	return names[0], nil
}

func (f fieldSet) object(name string) map[string]any {
	o, _ := f[name].(map[string]any)
	return o
}

func (f fieldSet) text(names ...string) (string, error) {
	switch name, v := f.first(names); v := v.(type) {
	case nil:
		return "", nil
	case string:
		return strings.TrimSpace(v), nil
	case json.Number:
		return v.String(), nil
	default:
		return "", fmt.Errorf("%s must be text", name)
	}
}

// whole reads a whole number, as a number or as text.
func (f fieldSet) whole(otherwise, least, most int64, names ...string) (int64, error) {
	name, v := f.first(names)
	if v == nil {
		return otherwise, nil
	}
	s, err := f.text(names...)
	if err != nil {
		return 0, fmt.Errorf("%s must be a whole number", name)
	}
	x, err := strconv.ParseFloat(s, 64)
	if err != nil || x != math.Trunc(x) {
		return 0, fmt.Errorf("%s %q is not a whole number", name, clip(s))
	}
	if x < float64(least) || x > float64(most) {
		return 0, fmt.Errorf("%s %s is not between %d and %d", name, clip(s), least, most)
	}
	return int64(x), nil
}

// decimal reads a finite number, and how many decimals it was written with.
func (f fieldSet) decimal(otherwise float64, names ...string) (x float64, decimals int, err error) {
	name, v := f.first(names)
	if v == nil {
		return otherwise, 0, nil
	}
	s, err := f.text(names...)
	if err != nil {
		return 0, 0, fmt.Errorf("%s must be a number", name)
	}
	x, err = strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(x, 0) || math.IsNaN(x) {
		return 0, 0, fmt.Errorf("%s %q is not a finite number", name, clip(s))
	}
	plain := strconv.FormatFloat(x, 'f', -1, 64)
	if _, after, found := strings.Cut(plain, "."); found {
		decimals = len(after)
	}
	return x, decimals, nil
}

func (f fieldSet) flag(names ...string) (bool, error) {
	switch name, v := f.first(names); v := v.(type) {
	case nil:
		return false, nil
	case bool:
		return v, nil
	case string:
		b, err := strconv.ParseBool(strings.ToLower(strings.TrimSpace(v)))
		if err != nil {
			return false, fmt.Errorf("%s must be true or false", name)
		}
		return b, nil
	default:
		return false, fmt.Errorf("%s must be true or false", name)
	}
}

// clip bounds what an error shows of a text.
func clip(s string) string {
	const most = 40
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
