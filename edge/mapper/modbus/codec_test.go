package modbus

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/edge/mapper"
)

// oneProperty makes a device with one property from two JSON objects.
func oneProperty(t testing.TB, as mapper.Type, config, visitor string) mapper.Device {
	t.Helper()
	return mapper.Device{
		Key: mapper.Key{Namespace: "plant", Name: "d"}, Config: object(t, config),
		Properties: []mapper.Property{{Name: "p", Type: as, Writable: true, Config: object(t, visitor)}},
	}
}

func object(t testing.TB, text string) (o map[string]any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&o); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return o
}

func onePoint(t testing.TB, as mapper.Type, visitor string) point {
	t.Helper()
	c, problems, err := parse(oneProperty(t, as, `{"address":"127.0.0.1"}`, visitor))
	if err != nil || len(problems) > 0 {
		t.Fatalf("%s: %v %v", visitor, err, problems)
	}
	return c.points[0]
}

func TestValuesLieInRegisters(t *testing.T) {
	for _, c := range []struct {
		as        mapper.Type
		visitor   string // beside register and offset
		registers []uint16
		value     string
	}{
		{"INT", `"dataType":"uint16"`, []uint16{65535}, "65535"},
		{"INT", `"dataType":"int16"`, []uint16{65535}, "-1"},
		{"INT", ``, []uint16{40000}, "40000"},
		{"INT", `"dataType":"int32"`, []uint16{0xffff, 0xfffe}, "-2"},
		{"INT", `"dataType":"uint32"`, []uint16{0x0001, 0x0002}, "65538"},
		{"INT", `"dataType":"uint32","wordOrder":"little"`, []uint16{0x0002, 0x0001}, "65538"},
		{"INT", `"dataType":"uint32","byteOrder":"little"`, []uint16{0x0100, 0x0200}, "65538"},
		{"INT", `"dataType":"uint32","isSwap":true,"isRegisterSwap":true`, []uint16{0x0200, 0x0100}, "65538"},
		{"INT", `"dataType":"int64"`, []uint16{0x8000, 0, 0, 1}, "-9223372036854775807"},
		{"INT", `"dataType":"uint64"`, []uint16{0x7fff, 0xffff, 0xffff, 0xffff}, "9223372036854775807"},
		{"INT", `"limit":2`, []uint16{0xffff, 0xffff}, "-1"},
		{"INT", `"dataType":"uint16","scale":10,"valueOffset":5`, []uint16{3}, "35"},
		{"FLOAT", `"scale":0.1`, []uint16{219}, "21.9"},
		{"FLOAT", `"dataType":"int16","scale":0.01,"valueOffset":-40.5`, []uint16{0xff9c}, "-41.5"},
		{"DOUBLE", `"dataType":"uint16","scale":0.001`, []uint16{7}, "0.007"},
		{"FLOAT", `"dataType":"float32"`, []uint16{0x41ac, 0x0000}, "21.5"},
		{"FLOAT", `"dataType":"float32"`, []uint16{0x3dcc, 0xcccd}, "0.1"},
		{"FLOAT", `"limit":2,"wordOrder":"low"`, []uint16{0x0000, 0x41ac}, "21.5"},
		{"DOUBLE", `"dataType":"float64"`, []uint16{0x4009, 0x21fb, 0x5444, 0x2d18}, "3.141592653589793"},
		{"BOOLEAN", `"dataType":"bit","bit":3`, []uint16{0x0008}, "true"},
		{"BOOLEAN", `"bit":15,"byteOrder":"little"`, []uint16{0x0080}, "true"},
		{"BOOLEAN", ``, []uint16{0}, "false"},
		{"BOOLEAN", `"dataType":"uint16"`, []uint16{1}, "true"},
		{"INT", `"dataType":"bit","bit":0`, []uint16{1}, "1"},
		{"STRING", `"limit":3`, []uint16{0x5075, 0x6d70, 0}, "Pump"},
		{"STRING", `"limit":2,"byteOrder":"little"`, []uint16{0x7550, 0x706d}, "Pump"},
		{"STRING", `"dataType":"uint16"`, []uint16{12}, "12"},
		{"BYTES", `"limit":2`, []uint16{0x0102, 0x0304}, "AQIDBA=="},
	} {
		visitor := `{"register":"holdingRegister","offset":0`
		if c.visitor != "" {
			visitor += "," + c.visitor
		}
		p := onePoint(t, c.as, visitor+"}")
		if got, err := p.decode(c.registers); err != nil || got != c.value {
			t.Errorf("%s %s: %v is read as %q, %v; want %q", c.as, c.visitor, c.registers, got, err, c.value)
		}
		if got, err := p.encode(c.value); err != nil || !slices.Equal(got, c.registers) {
			t.Errorf("%s %s: %q is written as %v, %v; want %v", c.as, c.visitor, c.value, got, err, c.registers)
		}
	}
}

func TestWhatARegisterCannotHoldIsRefused(t *testing.T) {
	for _, c := range []struct {
		as             mapper.Type
		visitor, value string
		says           string
	}{
		{"INT", `"dataType":"int16"`, "32768", "32768 in a register of 16 bits"},
		{"INT", `"dataType":"uint16"`, "-1", "-1 in a register of 16 bits"},
		{"INT", `"dataType":"uint64"`, "1e30", "register of 64 bits"},
		{"FLOAT", `"dataType":"uint16"`, "1.5", "whole numbers"},
		{"FLOAT", `"dataType":"uint16","scale":0.1`, "21.95", "steps of 0.1"},
		{"FLOAT", `"dataType":"float32"`, "1e39", "32 bits"},
		{"FLOAT", `"dataType":"float32"`, "warm", "not a number"},
		{"BOOLEAN", `"bit":1`, "maybe", "neither true nor false"},
		{"STRING", `"limit":1`, "Pump", "4 bytes does not fit into 1 registers"},
		{"BYTES", `"limit":1`, "?", "base64"},
	} {
		p := onePoint(t, c.as, `{"register":"holding","offset":0,`+c.visitor+"}")
		if got, err := p.encode(c.value); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %s: %q is written as %v, %v; want %q", c.as, c.visitor, c.value, got, err, c.says)
		}
	}
	nan := onePoint(t, "FLOAT", `{"register":"holding","offset":0,"dataType":"float32"}`)
	if got, err := nan.decode([]uint16{0x7fc0, 0}); err == nil {
		t.Errorf("no number is read as %q", got)
	}
	big := onePoint(t, "INT", `{"register":"holding","offset":0,"dataType":"uint64"}`)
	if got, err := big.decode([]uint16{0xffff, 0xffff, 0xffff, 0xffff}); err == nil {
		t.Errorf("more than an INT is read as %q", got)
	}
}

func TestConfigurationsOfKubeEdgeAreTaken(t *testing.T) {
	for _, c := range []struct {
		config string
		want   endpoint
		unit   uint8
	}{
		{`{"address":"192.0.2.7"}`, endpoint{address: "192.0.2.7:502"}, 1},
		{`{"address":"192.0.2.7:1502","transport":"rtuovertcp","unit":0}`, endpoint{rtu: true, address: "192.0.2.7:1502"}, 0},
		{`{"ip":"192.0.2.7","port":1502}`, endpoint{address: "192.0.2.7:1502"}, 1},
		{`{"communicateMode":"TCP","ip":"127.0.0.1","port":"5502","slaveID":7}`, endpoint{address: "127.0.0.1:5502"}, 7},
		{`{"mode":"RTU","ip":"127.0.0.1","port":"5502","SlaveID":"7"}`, endpoint{rtu: true, address: "127.0.0.1:5502"}, 7},
		{`{"tcp":{"ip":"127.0.0.1","port":5502,"slaveID":3}}`, endpoint{address: "127.0.0.1:5502"}, 3},
		{`{"host":"fe80::1"}`, endpoint{address: "[fe80::1]:502"}, 1},
	} {
		got, _, err := parse(mapper.Device{Config: object(t, c.config)})
		if err != nil || got.endpoint != c.want || got.unit != c.unit {
			t.Errorf("%s: %+v unit %d, %v", c.config, got.endpoint, got.unit, err)
		}
	}
	p := onePoint(t, "FLOAT", `{"register":"HoldingRegister","offset":2,"limit":1,"scale":1,"isSwap":true,"isRegisterSwap":true,"dataType":"float","max":100,"min":1}`)
	if p.table != holdingRegister || p.address != 2 || p.count != 1 || p.kind != unsigned || !p.littleB || !p.littleW {
		t.Errorf("%+v", p)
	}
	for visitor, want := range map[string]table{
		"CoilRegister": coil, "DiscreteInputRegister": discreteInput, "InputRegister": inputRegister, "coil": coil, "discreteInput": discreteInput,
	} {
		if p := onePoint(t, "INT", `{"register":"`+visitor+`","offset":1,"limit":1}`); p.table != want {
			t.Errorf("%s is %s", visitor, p.table)
		}
	}
}

func TestConfigurationsThatAreWrongSayWhy(t *testing.T) {
	for config, says := range map[string]string{
		`{}`: "names no address", `{"ip":"a b"}`: "HOST:PORT", `{"ip":"h","port":70000}`: "between 1 and 65535",
		`{"ip":"h","port":1.5}`: "not a whole number", `{"ip":"h","transport":"udp"}`: "neither tcp nor rtuovertcp",
		`{"serialPort":"/dev/ttyS0","slaveID":1}`: "serial ports are not served", `{"com":{"serialPort":"/dev/ttyS0"}}`: "serial ports",
		`{"ip":"h","slaveID":256}`: "between 0 and 255", `{"ip":"h","timeout":1}`: "timeout", `{"ip":{}}`: "must be text",
	} {
		if _, _, err := parse(mapper.Device{Config: object(t, config)}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", config, err, says)
		}
	}
	for visitor, says := range map[string]string{
		`{"offset":1}`: "names no register", `{"register":"40001","offset":1}`: "none of coil", `{"register":"coil"}`: "names no offset",
		`{"register":"coil","offset":1,"limit":2}`: "one bit", `{"register":"holding","offset":65535,"dataType":"int32"}`: "65535 is the last",
		`{"register":"holding","offset":1,"limit":3}`: "1, 2 or 4", `{"register":"holding","offset":1,"dataType":"int12"}`: "not known",
		`{"register":"holding","offset":1,"dataType":"int32","limit":1}`: "2 registers", `{"register":"holding","offset":1,"bit":16}`: "between",
		`{"register":"holding","offset":1,"bit":1,"dataType":"int16"}`: "bit goes with", `{"register":"holding","offset":1,"dataType":"string"}`: "need a limit",
		`{"register":"holding","offset":1,"dataType":"string","limit":2}`: "does not go with", `{"register":"holding","offset":1,"scale":"x"}`: "finite number",
		`{"register":"coil","offset":1,"scale":2}`: "numbers alone", `{"register":"holding","offset":1,"byteOrder":"odd"}`: "neither big nor little",
		`{"register":"holding","offset":1,"isSwap":"maybe"}`: "true or false", `{"register":"holding","offset":-1}`: "between",
	} {
		_, problems, err := parse(oneProperty(t, "INT", `{"ip":"h"}`, visitor))
		if err != nil || len(problems) != 1 || !strings.Contains(problems[0].Error(), says) {
			t.Errorf("%s: %v %v, want %q", visitor, err, problems, says)
		}
	}
}

func TestNeighboursAreReadTogether(t *testing.T) {
	at := func(t table, address, count int, every time.Duration) point {
		return point{table: t, address: uint16(address), count: uint16(count), collect: every}
	}
	points := []point{
		at(holdingRegister, 12, 2, time.Second), at(holdingRegister, 10, 2, time.Second), at(holdingRegister, 13, 1, time.Second), // 10 to 13
		at(holdingRegister, 16, 1, time.Second),   // a gap of 2
		at(holdingRegister, 14, 1, time.Minute),   // another cycle
		at(inputRegister, 14, 1, time.Second),     // another table
		at(holdingRegister, 17, 120, time.Second), // too long for one request
		at(coil, 0, 1, time.Second), at(coil, 1, 1, time.Second),
	}
	show := func(gap int) (all []string) {
		for _, p := range plan(points, gap) {
			for _, r := range p.requests {
				all = append(all, fmt.Sprintf("%s %s %d %d %d", p.every, r.table, r.start, r.count, len(r.points)))
			}
		}
		return all
	}
	want := []string{"1s coil 0 2 2", "1s inputRegister 14 1 1", "1s holdingRegister 10 4 3", "1s holdingRegister 16 121 2", "1m0s holdingRegister 14 1 1"}
	if got := show(0); !slices.Equal(got, want) {
		t.Errorf("plan: %q\nwant %q", got, want)
	}
	want[2], want[3] = "1s holdingRegister 10 7 4", "1s holdingRegister 17 120 1"
	if got := show(2); !slices.Equal(got, want) {
		t.Errorf("plan with a gap of 2: %q\nwant %q", got, want)
	}
}

// FuzzConfig: no configuration makes a point that cannot be planned or read.
func FuzzConfig(f *testing.F) {
	f.Add(`{"address":"h:502","slaveID":1,"wordOrder":"low"}`, `{"register":"holding","offset":1,"limit":2,"scale":0.1}`, "FLOAT")
	f.Add(`{"tcp":{"ip":"h","port":"1"}}`, `{"register":"coil","offset":65535,"bit":3}`, "BOOLEAN")
	f.Add(`{"ip":"h"}`, `{"register":"input","offset":3,"limit":125,"dataType":"string"}`, "STRING")
	f.Fuzz(func(t *testing.T, config, visitor, as string) {
		var d mapper.Device
		if json.Unmarshal([]byte(config), &d.Config) != nil {
			return
		}
		p := mapper.Property{Name: "p", Type: mapper.Type(as), Writable: true}
		if json.Unmarshal([]byte(visitor), &p.Config) != nil {
			return
		}
		d.Properties = []mapper.Property{p, p}
		c, _, err := parse(d)
		if err != nil {
			return
		}
		for _, poll := range plan(c.points, c.gap) {
			for _, r := range poll.requests {
				if r.count < 1 || r.count > maxBits || int(r.start)+r.count > 65536 || !r.table.bits() && r.count > maxRegisters {
					t.Fatalf("%s %s: request %+v", config, visitor, r)
				}
				for _, i := range r.points {
					if _, err := c.points[i].decode(make([]uint16, c.points[i].count)); err != nil && c.points[i].plain() {
						t.Fatalf("%s %s: zeros cannot be read: %v", config, visitor, err)
					}
				}
			}
		}
	})
}

// FuzzCodec: what is read can be written, and is then read the same.
func FuzzCodec(f *testing.F) {
	f.Add(uint8(0), uint8(0), true, false, 1.0, 0.0, []byte{0x41, 0xac, 0, 0, 1, 2, 3, 4}, "21.5")
	f.Add(uint8(3), uint8(2), false, true, 0.1, -40.0, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "true")
	types := []string{"int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "bit", "string", "bytes"}
	models := []mapper.Type{"INT", "FLOAT", "DOUBLE", "BOOLEAN", "STRING", "BYTES"}
	f.Fuzz(func(t *testing.T, dataType, model uint8, littleB, littleW bool, scale, add float64, content []byte, value string) {
		p := point{as: models[int(model)%len(models)], table: holdingRegister, bit: -1, count: 4, littleB: littleB, littleW: littleW, scale: 1}
		name := types[int(dataType)%len(types)]
		if name != "string" && name != "bytes" {
			p.count = 0
		}
		if p.setType(name) != nil {
			return
		}
		number := p.kind == signed || p.kind == unsigned || p.kind == float
		if number && scale != 0 && !math.IsNaN(scale) && !math.IsInf(scale, 0) && !math.IsNaN(add) && !math.IsInf(add, 0) {
			p.scale, p.add = scale, add
		}
		if p.fits() != nil {
			return
		}
		_, _ = p.encode(value) // it does not panic
		registers := make([]uint16, p.count)
		for i := range registers {
			if 2*i+1 < len(content) {
				registers[i] = uint16(content[2*i])<<8 | uint16(content[2*i+1])
			}
		}
		read, err := p.decode(registers)
		if err != nil || !p.plain() {
			return
		}
		written, err := p.encode(read)
		if err != nil {
			if p.as == "INT" && p.kind == float {
				return // it was rounded, and may be one more than there is
			}
			t.Fatalf("%s as %s: %v is read as %q, which cannot be written: %v", name, p.as, registers, read, err)
		}
		if again, err := p.decode(written); err != nil || again != read {
			t.Fatalf("%s as %s: %q is written as %v and read as %q, %v", name, p.as, read, written, again, err)
		}
	})
}
