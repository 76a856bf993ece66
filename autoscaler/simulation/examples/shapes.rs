fn main() {
    let setting = flux_simulation::Setting::default();
    let mut outcomes = Vec::new();
    for shape in flux_simulation::Shape::ALL {
        outcomes.push(flux_simulation::compare(&flux_simulation::Traffic::of_shape(shape, 1), &setting));
    }
    #[allow(clippy::print_stdout)]
    {
        println!("{}", flux_simulation::markdown(&outcomes));
    }
}
