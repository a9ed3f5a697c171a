# SPDX-License-Identifier: Apache-2.0
# The commands of this project. Each one installs what it needs, and may be run again at any time.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help deps build demo check unit functional interop style fuzz kill-rounds chaos bench sweep sim mutants format clean

# KEEP=1: `make demo` leaves its cluster running. DEPS=no: do not look for Debian packages.
# PARTS="style unit": only these parts of `make check`.
KEEP ?=
DEPS ?= yes
PARTS ?=
ROUNDS ?= 100
MINUTES ?= 10
SEEDS ?= 1000
MUTANTS ?=
export KEEP

need = $(if $(filter no,$(DEPS)),@true,@tools/deps/install $(1))

help:
	@echo 'make demo         build, start three sheep on this machine, show a volume, a snapshot and a clone'
	@echo '                  (KEEP=1 leaves the cluster running)'
	@echo 'make check        every test, as CI runs them (PARTS="style unit" picks some)'
	@echo
	@echo 'make build        build/src/sheep/sheep and build/src/dog/dog'
	@echo 'make unit         unit tests with AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make functional   tests with real daemons'
	@echo 'make interop      tests with qemu-img, qemu-io, nbdcopy, nbdinfo, fio'
	@echo 'make style        style, layering and header checks'
	@echo 'make fuzz         a minute of libFuzzer on each decoder'
	@echo 'make sweep        power cut, kill -9, I/O error, lack of memory at every operation of the store'
	@echo 'make sim          SEEDS=1000 runs of whole clusters in the simulator (sim/cluster/README.md)'
	@echo 'make mutants      deliberate bugs, each has to be caught by the simulator (sim/mutants/README.md)'
	@echo 'make kill-rounds  kill -9 of all daemons under load, ROUNDS=100 times'
	@echo 'make chaos        MINUTES=10 of killing, stopping, wiping daemons under clients that verify'
	@echo 'make bench        the benchmark table (bench/README.md)'
	@echo 'make format       clang-format on the tree'
	@echo 'make deps         install the Debian packages for all of the above'
	@echo 'make clean        remove what these commands made'

deps:
	@tools/deps/install build demo check

build:
	$(call need,build)
	@tools/build release

demo:
	$(call need,build demo)
	@tools/demo

check:
	$(call need,build demo check)
	@tools/check $(PARTS)

unit functional interop style fuzz:
	$(call need,build demo check)
	@tools/check $@

sweep:
	$(call need,build demo check)
	@tools/check sweep-all

sim:
	$(call need,build demo check)
	@sim/run $(SEEDS)

mutants:
	$(call need,build demo check)
	@sim/mutants/run $(MUTANTS)
	$(if $(MUTANTS),,@sim/mutants/map/run)

kill-rounds:
	$(call need,build demo check)
	@KELPIE_KILL_ROUNDS=$(ROUNDS) tools/check kill-rounds

chaos:
	$(call need,build demo check)
	@tools/build release
	@KELPIE_CHAOS_SECONDS=$$(($(MINUTES) * 60)) /usr/bin/python3 -m pytest -q -s tests/functional/test_chaos.py

bench:
	$(call need,build demo check)
	@tools/build release
	@bench/run

format:
	$(call need,check)
	@tools/style --fix

clean:
	rm -rf build build-asan build-clang build-fuzz run demo-run
